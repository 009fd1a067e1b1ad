#![no_main]

deltaconv_fuzz::target!("clip_tokenizer");
