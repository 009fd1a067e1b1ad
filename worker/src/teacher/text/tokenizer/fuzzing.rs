//! Doors for fuzzing, as `deltaconv_proto::fuzzing` has them.

use deltaconv_proto::fuzzing::{Input, in_memory, now, ok};

use super::{ClipTokenizer, Files, T5Tokenizer};

/// The parsers here, by the names of their corpora.
pub(crate) const TARGETS: [(&str, deltaconv_proto::fuzzing::Target); 2] =
    [("clip_tokenizer", of_clip), ("t5_tokenizer", of_t5)];

const FOLDER: &str = "tokenizer";

/// The four files, and a text.
fn of_clip(bytes: &[u8]) {
    let mut input = Input(bytes);
    let lengths = [(); 4].map(|()| input.short() as usize);
    let [vocabulary, merges, config, map] = lengths.map(|length| input.piece(length));
    let mut files = vec![("tokenizer/vocab.json", vocabulary), ("tokenizer/merges.txt", merges)];
    let optional = [("tokenizer/tokenizer_config.json", config), ("tokenizer/special_tokens_map.json", map)];
    files.extend(optional.into_iter().filter(|(_, bytes)| !bytes.is_empty()));
    let model = in_memory(&files);
    let files = Files { model: &model, folder: FOLDER };
    let Some(tokenizer) = ok(now(ClipTokenizer::load(&files, 77))) else { return };
    for text in [String::from_utf8_lossy(input.0).as_ref(), "a photo of 2 cats", ""] {
        let ids = ok(tokenizer.encode(text));
        assert!(ids.is_none_or(|ids| (3..=77).contains(&ids.len())));
    }
}

/// The model, a configuration, and a text.
fn of_t5(bytes: &[u8]) {
    let mut input = Input(bytes);
    let lengths = [(); 2].map(|()| input.short() as usize);
    let [model, config] = lengths.map(|length| input.piece(length));
    let mut files = vec![("tokenizer/spiece.model", model)];
    files.extend(Some(("tokenizer/tokenizer_config.json", config)).filter(|(_, bytes)| !bytes.is_empty()));
    let model = in_memory(&files);
    let files = Files { model: &model, folder: FOLDER };
    let Some(tokenizer) = ok(now(T5Tokenizer::load(&files, 40))) else { return };
    for text in [String::from_utf8_lossy(input.0).as_ref(), "a photo of 2 cats", ""] {
        let ids = ok(tokenizer.encode(text));
        assert!(ids.is_none_or(|ids| (1..=40).contains(&ids.len())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_from_fuzzing_holds() {
        deltaconv_proto::fuzzing::replay(&TARGETS);
    }
}
