#![no_main]

deltaconv_fuzz::target!("identity");
