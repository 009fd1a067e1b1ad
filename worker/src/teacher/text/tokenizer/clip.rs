//! transformers' `CLIPTokenizer` (`models/clip/tokenization_clip.py`) as a pipeline loads it, without ftfy: built from
//! `vocab.json`, `merges.txt`, `tokenizer_config.json` and `special_tokens_map.json`.

use std::collections::BTreeMap;

use deltaconv_proto::Brief;
use serde_json::{Value, json};
use tokenizers::Tokenizer;

use super::Error;
use super::files::{Files, named_token, object, wrong};

/// Merges that the tokenizer reads, however many the file has: 49152 − 256 − 2.
const MAX_MERGES: usize = 48894;
/// The begin, the end, and a token between them.
const LEAST: usize = 3;
/// Letters and digits one by one, what is between them, and English contractions. The long s is what Python takes for an
/// s where case is ignored.
const PIECES: &str = r"'[sſ]|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
/// A capital sigma that ends a word, which Python makes a final one in lower case.
const FINAL_SIGMA: &str = r"(?<=[\p{Ll}\p{Lu}\p{Lt}])Σ(?![\p{Ll}\p{Lu}\p{Lt}])";

/// Text → ids.
#[derive(Debug)]
pub(crate) struct ClipTokenizer {
    tokenizer: Tokenizer,
    begin: u32,
    end: u32,
    pad: u32,
    /// Ids of a text, those around it and the padding included.
    length: usize,
}

impl ClipTokenizer {
    /// Reads the tokenizer's folder; texts get at most `positions` tokens.
    pub(crate) async fn load(files: &Files<'_>, positions: usize) -> Result<Self, Error> {
        let vocabulary: BTreeMap<String, u32> = files.json("vocab.json").await?;
        let merges = files.text("merges.txt").await?;
        // The first line says the version.
        let merges = merges.trim().lines().skip(1).take(MAX_MERGES);
        let merges: Vec<Value> = merges.map(|line| line.split(' ').collect()).collect();
        let config = object(files.optional_json("tokenizer_config.json").await?);
        let map = object(files.optional_json("special_tokens_map.json").await?);
        // Where the configuration lists the added tokens, transformers believes it, and else the other file.
        let (first, second) =
            if config.contains_key("added_tokens_decoder") { (&config, &map) } else { (&map, &config) };
        let special = |role: &str, default: &str| -> Result<(String, u32), Error> {
            let name =
                named_token(first, role).or_else(|| named_token(second, role)).unwrap_or_else(|| default.to_owned());
            let id = vocabulary.get(&name).copied();
            let id = id.ok_or_else(|| wrong(files, "vocab.json", format!("it lacks the {role}, {name:?}")))?;
            Ok((name, id))
        };
        let (begin, end) = (special("bos_token", "<|startoftext|>")?, special("eos_token", "<|endoftext|>")?);
        let pad = special("pad_token", &end.0)?;
        let longest = config.get("model_max_length").and_then(Value::as_u64).unwrap_or(u64::MAX);

        let length = positions.min(usize::try_from(longest).unwrap_or(usize::MAX));
        if length < LEAST {
            let reason = format!("its model_max_length is {longest}, and {LEAST} are the least");
            return Err(wrong(files, "tokenizer_config.json", reason));
        }

        let added = |(content, id): &(String, u32), normalized: bool| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": normalized, "special": true})
        };
        let mut tokens = vec![added(&begin, true), added(&end, true)];
        if pad.1 != end.1 && pad.1 != begin.1 {
            tokens.push(added(&pad, false));
        }
        let tokenizer = json!({
            "version": "1.0",
            "added_tokens": tokens,
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": false,
                 "lowercase": false},
                {"type": "NFC"},
                {"type": "Replace", "pattern": {"Regex": FINAL_SIGMA}, "content": "ς"},
                {"type": "Lowercase"},
            ]},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": PIECES}, "behavior": "Removed", "invert": true},
                {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
            ]},
            "model": {"type": "BPE", "dropout": null, "unk_token": end.0, "continuing_subword_prefix": "",
                      "end_of_word_suffix": "</w>", "fuse_unk": false, "vocab": vocabulary, "merges": merges},
        });
        let tokenizer = Tokenizer::from_bytes(tokenizer.to_string())
            .map_err(|e| wrong(files, "vocab.json", format!("with merges.txt it makes no tokenizer ({e})")))?;
        Ok(Self { tokenizer, begin: begin.1, end: end.1, pad: pad.1, length })
    }

    /// The ids of a text, cut or padded to the encoder's length.
    pub(crate) fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        let encoding = self.tokenizer.encode_fast(text, false).map_err(|e| Error::Unexpected {
            what: format!("the prompt {}", Brief(text)),
            reason: format!("it can't be split into tokens ({})", Brief(&e)),
        })?;
        let inner = encoding.get_ids().iter().copied().take(self.length - 2);
        let mut ids: Vec<u32> = std::iter::once(self.begin).chain(inner).chain([self.end]).collect();
        ids.resize(self.length, self.pad);
        Ok(ids)
    }
}
