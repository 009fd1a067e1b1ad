//! transformers' `T5Tokenizer` (`models/t5/tokenization_t5.py`), from the SentencePiece model `spiece.model`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use deltaconv_proto::Brief;
use prost::Message;
use serde_json::{Value, json};
use tokenizers::Tokenizer;

use super::files::{Files, object, wrong};
use super::{Error, charsmap};

const MODEL: &str = "spiece.model";
const END: &str = "</s>";
/// SentencePiece's number of the model type that T5 has.
const UNIGRAM: i32 = 1;

/// The parts of SentencePiece's `ModelProto` (`sentencepiece_model.proto`) that are read.
#[derive(Clone, PartialEq, Message)]
struct SentencePiece {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    trainer: Option<Trainer>,
    #[prost(message, optional, tag = "3")]
    normalizer: Option<Normalizer>,
}

#[derive(Clone, PartialEq, Message)]
struct Piece {
    #[prost(string, tag = "1")]
    piece: String,
    #[prost(float, tag = "2")]
    score: f32,
}

#[derive(Clone, PartialEq, Message)]
struct Trainer {
    #[prost(int32, optional, tag = "3")]
    model_type: Option<i32>,
    #[prost(int32, optional, tag = "40")]
    unk_id: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct Normalizer {
    #[prost(bytes = "vec", tag = "2")]
    precompiled_charsmap: Vec<u8>,
}

/// Text → ids.
#[derive(Debug)]
pub(crate) struct T5Tokenizer {
    tokenizer: Tokenizer,
    end: u32,
    /// Most ids of a text, the end included.
    length: usize,
}

impl T5Tokenizer {
    /// Reads the tokenizer's folder; texts get at most `length` tokens.
    pub(crate) async fn load(files: &Files<'_>, length: usize) -> Result<Self, Error> {
        let bytes = files.bytes(MODEL).await?;
        let model = SentencePiece::decode(bytes)
            .map_err(|e| wrong(files, MODEL, format!("it is no SentencePiece model ({e})")))?;
        let trainer = model.trainer.unwrap_or_default();
        let kind = trainer.model_type.unwrap_or(UNIGRAM);
        if kind != UNIGRAM {
            return Err(wrong(files, MODEL, format!("its model_type is {kind}; T5's is {UNIGRAM}, unigram")));
        }
        let config = object(files.optional_json("tokenizer_config.json").await?);
        let extra_ids = config.get("extra_ids").and_then(Value::as_u64).unwrap_or(100).min(10_000);
        let legacy = config.get("legacy").and_then(Value::as_bool).unwrap_or(true);

        let mut vocabulary: Vec<(String, f64)> =
            model.pieces.into_iter().map(|piece| (piece.piece, f64::from(piece.score))).collect();
        let first_extra = vocabulary.len();
        vocabulary.extend((0..extra_ids).rev().map(|i| (format!("<extra_id_{i}>"), 0.0)));
        let id = |token: &str| vocabulary.iter().position(|(piece, _)| piece == token);
        let end = id(END).ok_or_else(|| wrong(files, MODEL, format!("it lacks the token {END}")))?;
        let added = |id: usize, strips: bool| {
            json!({"id": id, "content": vocabulary[id].0, "single_word": false, "lstrip": strips, "rstrip": strips,
                   "normalized": false, "special": true})
        };
        let plain = ["<pad>", END, "<unk>"].iter().filter_map(|token| id(token)).map(|id| added(id, false));
        let added_tokens: Vec<Value> = plain.chain((first_extra..vocabulary.len()).map(|id| added(id, true))).collect();
        let mut normalizers = vec![
            json!({"type": "Strip", "strip_left": false, "strip_right": true}),
            json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}),
        ];
        let charsmap = model.normalizer.unwrap_or_default().precompiled_charsmap;
        if !charsmap.is_empty() {
            charsmap::check(&charsmap)
                .map_err(|reason| wrong(files, MODEL, format!("its table of characters is broken: {reason}")))?;
            normalizers.insert(0, json!({"type": "Precompiled", "precompiled_charsmap": STANDARD.encode(charsmap)}));
        }
        let prepend = if legacy { "always" } else { "first" };
        let tokenizer = json!({
            "version": "1.0",
            "added_tokens": added_tokens,
            "normalizer": {"type": "Sequence", "normalizers": normalizers},
            "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": prepend, "split": true},
            "model": {"type": "Unigram", "unk_id": trainer.unk_id.unwrap_or(0), "vocab": vocabulary,
                      "byte_fallback": false},
        });
        let tokenizer = Tokenizer::from_bytes(tokenizer.to_string())
            .map_err(|e| wrong(files, MODEL, format!("it makes no tokenizer ({e})")))?;
        Ok(Self { tokenizer, end: end as u32, length })
    }

    /// The ids of a text, its end included and without padding.
    pub(crate) fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        let encoding = self.tokenizer.encode_fast(text, false).map_err(|e| Error::Unexpected {
            what: format!("the prompt {}", Brief(text)),
            reason: format!("it can't be split into tokens ({})", Brief(&e)),
        })?;
        let mut ids = encoding.get_ids().to_vec();
        // A text that says its end gets no second one.
        if ids.last() != Some(&self.end) || ids.len() > self.length {
            ids.truncate(self.length - 1);
            ids.push(self.end);
        }
        Ok(ids)
    }
}
