//! diffusers' `PixArtTransformer2DModel` (PixArt-α, PixArt-Σ): its configuration, its tensors and its layers.
//!
//! Source: diffusers `models/transformers/pixart_transformer_2d.py`, `models/attention.py` (`ada_norm_single`).

use serde_json::Value;

use super::fields::{Fields, count, invalid};
use super::{Error, Layer};

// Bounds on what a configuration may ask for, far above any published model, so that a hostile one costs little.
const MAX_CHANNELS: usize = 1 << 16;
const MAX_LAYERS: usize = 1024;
const MAX_PATCH: usize = 64;
const MAX_SAMPLE_SIZE: usize = 1 << 16;
/// Channels of the sinusoids of timestep, resolution and aspect ratio.
const SINUSOIDS: usize = 256;

/// A `PixArtTransformer2DModel` with every choice made.
#[derive(Debug, Clone, PartialEq)]
pub struct PixArtConfig {
    /// Height and width of the latents it was trained at.
    pub sample_size: usize,
    /// Channels of the latents.
    pub in_channels: usize,
    /// Channels of the output: those of the latents, or twice as many where it also predicts the variance.
    pub out_channels: usize,
    /// Rows and columns of latent pixels that become one position.
    pub patch_size: usize,
    /// Transformer blocks.
    pub depth: usize,
    /// Attention heads.
    pub heads: usize,
    /// Channels of one head.
    pub head_dim: usize,
    /// Whether the projections to queries, keys and values have biases.
    pub attention_bias: bool,
    /// ε of the blocks' layer norms.
    pub norm_eps: f64,
    /// Width of what the blocks' `attn2` attends to.
    pub context: usize,
    /// Width of the text embeddings where they are projected to [`Self::context`] first.
    pub caption_channels: Option<usize>,
    /// What positions are divided by before their sinusoids are taken.
    pub interpolation_scale: f64,
    /// Whether resolution and aspect ratio are conditions.
    pub additional_conditions: bool,
}

/// Fields that change nothing in a model of this class, whatever they say: training's, bookkeeping, and norms, embeddings
/// and projections of other variants of `Transformer2DModel`, as which older files name this class.
const WITHOUT_EFFECT: &[&str] = &[
    "_class_name",
    "_diffusers_version",
    "_name_or_path",
    "dropout",
    "norm_num_groups",
    "num_embeds_ada_norm",
    "upcast_attention",
    "use_linear_projection",
];

impl PixArtConfig {
    pub(super) fn from_fields(mut fields: Fields) -> Result<Self, Error> {
        let config = Self::read(&mut fields)?;
        fields.finish()?;
        Ok(config)
    }

    fn read(fields: &mut Fields) -> Result<Self, Error> {
        fields.refuse_unless("norm_type", &Value::from("ada_norm_single"), "\"ada_norm_single\"")?;
        fields.refuse_unless("activation_fn", &Value::from("gelu-approximate"), "\"gelu-approximate\"")?;
        fields.refuse_unless("attention_type", &Value::from("default"), "\"default\"")?;
        fields.refuse_unless("norm_elementwise_affine", &Value::Bool(false), "false")?;
        fields.refuse_unless("double_self_attention", &Value::Bool(false), "false")?;
        fields.refuse_unless("only_cross_attention", &Value::Bool(false), "false")?;
        fields.refuse_unless("num_vector_embeds", &Value::Null, "null")?;
        fields.ignore(WITHOUT_EFFECT);

        let heads = fields.count("num_attention_heads", 16, 1, MAX_CHANNELS)?;
        let head_dim = fields.count("attention_head_dim", 72, 1, MAX_CHANNELS)?;
        let inner = heads.saturating_mul(head_dim);
        // The sinusoids of rows and columns take a half each, and each half is sines and cosines.
        if inner > MAX_CHANNELS || !inner.is_multiple_of(4) {
            let expected =
                format!("a factor that makes {heads} heads a multiple of 4 channels, at most {MAX_CHANNELS}");
            return Err(invalid("attention_head_dim", &Value::from(head_dim), &expected));
        }
        let sample_size = fields.count("sample_size", 128, 1, MAX_SAMPLE_SIZE)?;
        let patch_size = fields.count("patch_size", 2, 1, MAX_PATCH)?;
        if sample_size < patch_size {
            let expected = format!("at most the sample_size, {sample_size}");
            return Err(invalid("patch_size", &Value::from(patch_size), &expected));
        }
        let in_channels = fields.count("in_channels", 4, 1, MAX_CHANNELS)?;
        let optional = |value: Option<Value>| value.filter(|value| !value.is_null());
        let out_channels = match fields.take("out_channels") {
            None => 8,
            Some(Value::Null) => in_channels,
            Some(value) => count("out_channels", &value, 1, MAX_CHANNELS)?,
        };
        let caption_channels = optional(fields.take("caption_channels"))
            .map(|value| count("caption_channels", &value, 1, MAX_CHANNELS))
            .transpose()?;
        let context = fields.count("cross_attention_dim", 1152, 1, MAX_CHANNELS)?;
        if caption_channels.is_some() && context != inner {
            let expected = format!("the model's {inner} channels, to which the captions are projected");
            return Err(invalid("cross_attention_dim", &Value::from(context), &expected));
        }
        let interpolation_scale = match optional(fields.take("interpolation_scale")) {
            None => (sample_size / 64).max(1) as f64,
            Some(value) => match value.as_f64() {
                Some(scale) if scale.is_finite() && scale > 0.0 => scale,
                _ => return Err(invalid("interpolation_scale", &value, "a positive number or null")),
            },
        };
        let additional_conditions = match optional(fields.take("use_additional_conditions")) {
            None => sample_size == 128,
            Some(Value::Bool(value)) => value,
            Some(other) => return Err(invalid("use_additional_conditions", &other, "true, false or null")),
        };
        if additional_conditions && !inner.is_multiple_of(3) {
            let expected = format!("false for a model of {inner} channels, which three embeddings can't share");
            return Err(invalid("use_additional_conditions", &Value::Bool(true), &expected));
        }
        let norm_eps = fields.number("norm_eps", 1e-6)?;
        if norm_eps <= 0.0 {
            return Err(invalid("norm_eps", &Value::from(norm_eps), "a positive number"));
        }
        Ok(Self {
            sample_size,
            in_channels,
            out_channels,
            patch_size,
            depth: fields.count("num_layers", 28, 1, MAX_LAYERS)?,
            heads,
            head_dim,
            attention_bias: fields.bool("attention_bias", true)?,
            norm_eps,
            context,
            caption_channels,
            interpolation_scale,
            additional_conditions,
        })
    }

    /// Channels of the residual stream.
    pub fn inner(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of the text embeddings that go in.
    pub fn text_channels(&self) -> usize {
        self.caption_channels.unwrap_or(self.context)
    }

    /// The modules of the transformer blocks, in order.
    pub fn blocks(&self) -> impl Iterator<Item = String> {
        (0..self.depth).map(|i| format!("transformer_blocks.{i}"))
    }

    /// Name and shape of every tensor of the weights.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (inner, patch) = (self.inner(), self.patch_size);
        let mut tensors: Vec<(String, Vec<usize>)> = Vec::new();
        let mut push = |name: String, shape: &[usize]| tensors.push((name, shape.to_vec()));
        push("pos_embed.proj.weight".to_owned(), &[inner, self.in_channels, patch, patch]);
        push("pos_embed.proj.bias".to_owned(), &[inner]);
        let mut linear = |name: &str, input: usize, output: usize, bias: bool| {
            push(format!("{name}.weight"), &[output, input]);
            if bias {
                push(format!("{name}.bias"), &[output]);
            }
        };
        let third = inner / 3;
        let with_additional = if self.additional_conditions { 3 } else { 1 };
        let embedders = [("timestep", inner), ("resolution", third), ("aspect_ratio", third)];
        for (name, channels) in &embedders[..with_additional] {
            linear(&format!("adaln_single.emb.{name}_embedder.linear_1"), SINUSOIDS, *channels, true);
            linear(&format!("adaln_single.emb.{name}_embedder.linear_2"), *channels, *channels, true);
        }
        linear("adaln_single.linear", inner, 6 * inner, true);
        if let Some(caption) = self.caption_channels {
            linear("caption_projection.linear_1", caption, inner, true);
            linear("caption_projection.linear_2", inner, inner, true);
        }
        for block in self.blocks() {
            for (attention, context) in [("attn1", inner), ("attn2", self.context)] {
                linear(&format!("{block}.{attention}.to_q"), inner, inner, self.attention_bias);
                linear(&format!("{block}.{attention}.to_k"), context, inner, self.attention_bias);
                linear(&format!("{block}.{attention}.to_v"), context, inner, self.attention_bias);
                linear(&format!("{block}.{attention}.to_out.0"), inner, inner, true);
            }
            linear(&format!("{block}.ff.net.0.proj"), inner, 4 * inner, true);
            linear(&format!("{block}.ff.net.2"), 4 * inner, inner, true);
        }
        linear("proj_out", inner, patch * patch * self.out_channels, true);
        for block in self.blocks() {
            push(format!("{block}.scale_shift_table"), &[6, inner]);
        }
        push("scale_shift_table".to_owned(), &[2, inner]);
        tensors
    }

    /// The self-attention layers in the order of the forward pass, for latents of `height` × `width`.
    ///
    /// # Errors
    /// [`Error::MapSize`] for latents that patches don't divide.
    pub fn layers(&self, height: usize, width: usize) -> Result<Vec<Layer>, Error> {
        let patch = self.patch_size;
        if height == 0 || width == 0 || !height.is_multiple_of(patch) || !width.is_multiple_of(patch) {
            let reason = format!("patches of {patch}×{patch} do not divide it");
            return Err(Error::MapSize { height, width, at: "pos_embed".to_owned(), reason });
        }
        let layer = |(index, name)| Layer {
            name,
            index,
            channels: self.inner(),
            heads: self.heads,
            height: height / patch,
            width: width / patch,
        };
        Ok(self.blocks().enumerate().map(layer).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Teacher;
    use super::*;

    fn parse(fields: &str) -> Result<PixArtConfig, Error> {
        let json = format!(r#"{{"_class_name": "PixArtTransformer2DModel"{fields}}}"#);
        match Teacher::parse(json.as_bytes())? {
            Teacher::PixArt(config) => Ok(config),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn defaults_are_those_of_pixart_sigma_but_for_the_captions() {
        let config = parse("").unwrap();
        assert_eq!((config.inner(), config.depth, config.interpolation_scale), (1152, 28, 2.0));
        assert!(config.additional_conditions);
        assert_eq!(parse(r#", "sample_size": 64"#).unwrap().interpolation_scale, 1.0);
        assert!(!parse(r#", "sample_size": 64"#).unwrap().additional_conditions);
        assert_eq!(parse(r#", "out_channels": null"#).unwrap().out_channels, 4);
    }

    /// The parameters of PixArt-Σ-XL-2-1024-MS's transformer, whose file names an older class.
    #[test]
    fn sigma_has_its_published_size() {
        let json = br#"{"_class_name": "Transformer2DModel", "activation_fn": "gelu-approximate", "attention_bias": true,
            "attention_head_dim": 72, "attention_type": "default", "caption_channels": 4096, "cross_attention_dim": 1152,
            "double_self_attention": false, "dropout": 0.0, "in_channels": 4, "interpolation_scale": 2,
            "norm_elementwise_affine": false, "norm_eps": 1e-06, "norm_num_groups": 32, "norm_type": "ada_norm_single",
            "num_attention_heads": 16, "num_embeds_ada_norm": 1000, "num_layers": 28, "num_vector_embeds": null,
            "only_cross_attention": false, "out_channels": 8, "patch_size": 2, "sample_size": 128,
            "upcast_attention": false, "use_additional_conditions": false, "use_linear_projection": false}"#;
        let teacher = Teacher::parse(json).unwrap();
        let parameters: usize = teacher.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
        assert_eq!(parameters, 610_856_096);
        let layers = teacher.layers(128, 96).unwrap();
        assert_eq!((layers.len(), layers[27].height, layers[27].width), (28, 64, 48));
        assert!(matches!(teacher.layers(127, 96), Err(Error::MapSize { .. })));
    }

    #[test]
    fn what_is_not_computed_is_refused_by_name() {
        for (fields, name) in [
            (r#", "norm_type": "ada_norm_zero""#, "norm_type"),
            (r#", "activation_fn": "geglu""#, "activation_fn"),
            (r#", "norm_elementwise_affine": true"#, "norm_elementwise_affine"),
            (r#", "caption_channels": 4096, "cross_attention_dim": 768"#, "cross_attention_dim"),
            (r#", "attention_head_dim": 71, "num_attention_heads": 1"#, "attention_head_dim"),
            (r#", "patch_size": 200"#, "patch_size"),
            (r#", "interpolation_scale": -1"#, "interpolation_scale"),
            (r#", "windows": 4"#, "windows"),
        ] {
            let error = parse(fields).unwrap_err().to_string();
            assert!(error.contains(name), "{fields}: {error}");
        }
    }
}
