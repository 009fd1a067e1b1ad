#![no_main]

deltaconv_fuzz::target!("t5_tokenizer");
