#![no_main]

deltaconv_fuzz::target!("access");
