//! candle-transformers' T5 encoder with our weights.

use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::var_builder::{SimpleBackend, VarBuilder};
use candle_nn::{Activation, Init};
use candle_transformers::models::t5::{ActivationWithOptionalGating, Config, T5EncoderModel};
use deltaconv_proto::teacher::T5Config;

use super::super::{Error, Weights};

/// A text encoder in host memory, f32.
pub(super) struct T5 {
    config: T5Config,
    model: T5EncoderModel,
}

impl T5 {
    pub(super) fn load(config: &T5Config, weights: &mut Weights) -> Result<Self, Error> {
        let theirs = Config {
            vocab_size: config.vocabulary,
            d_model: config.channels,
            d_kv: config.head_dim,
            d_ff: config.intermediate,
            num_layers: config.depth,
            num_heads: config.heads,
            relative_attention_num_buckets: config.buckets,
            relative_attention_max_distance: config.max_distance,
            layer_norm_epsilon: config.norm_eps,
            // "gated-gelu" is GELU's approximation by tanh.
            feed_forward_proj: ActivationWithOptionalGating { gated: true, activation: Activation::NewGelu },
            is_decoder: false,
            use_cache: false,
            ..Config::default()
        };
        let backend = Box::new(OneByOne(Mutex::new(weights)));
        let model = T5EncoderModel::load(VarBuilder::from_backend(backend, DType::F32, Device::Cpu), &theirs)?;
        Ok(Self { config: config.clone(), model })
    }

    /// The embeddings of one text: [tokens, C]. Padding is not among the tokens: attention that is masked from it, as
    /// PixArt's is, does not see it.
    pub(super) fn forward(&mut self, ids: &[u32]) -> Result<Tensor, Error> {
        if ids.iter().any(|id| *id as usize >= self.config.vocabulary) {
            let problem = format!("the tokenizer's ids do not fit an encoder of {} tokens", self.config.vocabulary);
            return Err(Error::Argument { argument: "prompts", problem });
        }
        Ok(self.model.forward(&Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?)?.squeeze(0)?)
    }
}

/// Reads tensors as candle's modules ask for them.
struct OneByOne<'w>(Mutex<&'w mut Weights>);

impl SimpleBackend for OneByOne<'_> {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        let mut weights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let values = weights.read(name, shape.dims()).map_err(candle_core::Error::wrap)?;
        Tensor::from_vec(values, shape, device)?.to_dtype(dtype)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        let shape = {
            let weights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let missing = || deltaconv_proto::teacher::Error::MissingTensor { name: name.to_owned() };
            weights.info(name).ok_or_else(missing).map_err(candle_core::Error::wrap)?.shape.clone()
        };
        self.get(shape.into(), name, Init::Const(0.0), dtype, device)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).info(name).is_some()
    }
}
