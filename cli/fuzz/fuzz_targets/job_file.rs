#![no_main]

deltaconv_fuzz::target!("job_file");
