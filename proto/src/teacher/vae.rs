use serde_json::Value;

use super::Error;
use super::fields::{Fields, count, invalid};

const MAX_CHANNELS: usize = 1 << 16;
/// Each level halves the map.
const MAX_LEVELS: usize = 8;

/// Fields of diffusers that change nothing about the numbers: a size for which nothing is built, the precision that a
/// pipeline decodes in (ours is f32), and names.
const WITHOUT_EFFECT: &[&str] =
    &["_class_name", "_diffusers_version", "_name_or_path", "decay", "force_upcast", "sample_size"];

/// diffusers' `AutoencoderKL` (`models/autoencoders/autoencoder_kl.py`).
#[derive(Debug, Clone, PartialEq)]
pub struct VaeConfig {
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Channels of each level, the pictures' size first.
    pub channels: Vec<usize>,
    /// Resnets of a level on the way down; on the way up there is one more.
    pub resnets: usize,
    /// Of the group norms.
    pub groups: usize,
    /// Latents that the denoiser sees = these × the VAE's own.
    pub scaling_factor: f64,
    /// Whether the encoder's end has a 1×1 convolution.
    pub quant_conv: bool,
    /// Whether the decoder's start has a 1×1 convolution.
    pub post_quant_conv: bool,
    /// Whether the middle attends.
    pub mid_attention: bool,
}

impl VaeConfig {
    /// Reads the VAE's `config.json`.
    ///
    /// # Errors
    /// Whatever would make another model of it than we compute, by field and value.
    pub fn parse(json: &[u8]) -> Result<Self, Error> {
        let mut fields = Fields::parse(json)?;
        let class = fields.class()?;
        if class != "AutoencoderKL" {
            return Err(Error::Class { found: class, supported: "AutoencoderKL" });
        }
        fields.ignore(WITHOUT_EFFECT);
        let channels = match fields.take("block_out_channels") {
            None => vec![64],
            Some(Value::Array(levels)) if (1..=MAX_LEVELS).contains(&levels.len()) => levels
                .iter()
                .map(|level| count("block_out_channels", level, 1, MAX_CHANNELS))
                .collect::<Result<_, Error>>()?,
            Some(other) => {
                return Err(invalid("block_out_channels", &other, &format!("a list of 1 to {MAX_LEVELS} numbers")));
            }
        };
        let all = |name: &str| Value::from(vec![name; channels.len()]);
        for (field, blocks, supported) in [
            ("down_block_types", "DownEncoderBlock2D", "DownEncoderBlock2D for each of block_out_channels"),
            ("up_block_types", "UpDecoderBlock2D", "UpDecoderBlock2D for each of block_out_channels"),
        ] {
            match fields.take(field) {
                Some(value) if value != all(blocks) => {
                    return Err(Error::Unsupported { field, value: super::fields::shown(&value), supported });
                }
                None if channels.len() > 1 => return Err(invalid(field, &Value::Null, supported)),
                _ => {}
            }
        }
        fields.refuse_unless("act_fn", &Value::from("silu"), "\"silu\"")?;
        fields.refuse_unless("in_channels", &Value::from(3), "3")?;
        fields.refuse_unless("out_channels", &Value::from(3), "3")?;
        for field in ["shift_factor", "latents_mean", "latents_std"] {
            fields.refuse_unless(field, &Value::Null, "null")?;
        }
        let groups = fields.count("norm_num_groups", 32, 1, MAX_CHANNELS)?;
        if let Some(level) = channels.iter().find(|level| !level.is_multiple_of(groups)) {
            let expected = format!("a divisor of block_out_channels, of which one is {level}");
            return Err(invalid("norm_num_groups", &Value::from(groups), &expected));
        }
        let scaling_factor = fields.number("scaling_factor", 0.18215)?;
        if scaling_factor <= 0.0 {
            return Err(invalid("scaling_factor", &Value::from(scaling_factor), "a positive number"));
        }
        let config = Self {
            latent_channels: fields.count("latent_channels", 4, 1, MAX_CHANNELS)?,
            channels,
            resnets: fields.count("layers_per_block", 1, 1, 64)?,
            groups,
            scaling_factor,
            quant_conv: fields.bool("use_quant_conv", true)?,
            post_quant_conv: fields.bool("use_post_quant_conv", true)?,
            mid_attention: fields.bool("mid_block_add_attention", true)?,
        };
        fields.finish()?;
        Ok(config)
    }

    /// Pixels that one side of a latent's pixel stands for.
    pub fn factor(&self) -> usize {
        1 << (self.channels.len() - 1)
    }

    /// Name and shape of every tensor of the weights. `old_names`: as diffusers called the attention's projections before
    /// 0.17.
    pub fn tensors(&self, old_names: bool) -> Vec<(String, Vec<usize>)> {
        let mut tensors = Vec::new();
        let mut pair = |name: String, shape: &[usize]| {
            tensors.push((format!("{name}.weight"), shape.to_vec()));
            tensors.push((format!("{name}.bias"), vec![shape[0]]));
        };
        let (first, last) = (self.channels[0], self.channels[self.channels.len() - 1]);
        let latent = self.latent_channels;
        for (half, start, end) in [("encoder", (3, first), (last, 2 * latent)), ("decoder", (latent, last), (first, 3))]
        {
            pair(format!("{half}.conv_in"), &[start.1, start.0, 3, 3]);
            pair(format!("{half}.conv_norm_out"), &[end.0]);
            pair(format!("{half}.conv_out"), &[end.1, end.0, 3, 3]);
            if self.mid_attention {
                let attention = format!("{half}.mid_block.attentions.0");
                pair(format!("{attention}.group_norm"), &[last]);
                for projection in attention_names(old_names) {
                    pair(format!("{attention}.{projection}"), &[last, last]);
                }
            }
        }
        if self.quant_conv {
            pair("quant_conv".to_owned(), &[2 * latent, 2 * latent, 1, 1]);
        }
        if self.post_quant_conv {
            pair("post_quant_conv".to_owned(), &[latent, latent, 1, 1]);
        }
        for VaeResnet { name, input, output } in self.resnets() {
            pair(format!("{name}.norm1"), &[input]);
            pair(format!("{name}.conv1"), &[output, input, 3, 3]);
            pair(format!("{name}.norm2"), &[output]);
            pair(format!("{name}.conv2"), &[output, output, 3, 3]);
            if input != output {
                pair(format!("{name}.conv_shortcut"), &[output, input, 1, 1]);
            }
        }
        for (level, channels) in self.channels[..self.channels.len() - 1].iter().enumerate() {
            pair(format!("encoder.down_blocks.{level}.downsamplers.0.conv"), &[*channels, *channels, 3, 3]);
        }
        for (level, channels) in self.channels.iter().rev().take(self.channels.len() - 1).enumerate() {
            pair(format!("decoder.up_blocks.{level}.upsamplers.0.conv"), &[*channels, *channels, 3, 3]);
        }
        tensors
    }

    /// Every resnet of encoder and decoder.
    fn resnets(&self) -> Vec<VaeResnet> {
        let last = self.channels[self.channels.len() - 1];
        let mut resnets = Vec::new();
        let mut level = |path: String, input: usize, output: usize, count: usize| {
            let of = |i| VaeResnet {
                name: format!("{path}.resnets.{i}"),
                input: if i == 0 { input } else { output },
                output,
            };
            resnets.extend((0..count).map(of));
        };
        let mut input = self.channels[0];
        for (i, channels) in self.channels.iter().enumerate() {
            level(format!("encoder.down_blocks.{i}"), input, *channels, self.resnets);
            input = *channels;
        }
        level("encoder.mid_block".to_owned(), last, last, 2);
        level("decoder.mid_block".to_owned(), last, last, 2);
        let mut input = last;
        for (i, channels) in self.channels.iter().rev().enumerate() {
            level(format!("decoder.up_blocks.{i}"), input, *channels, self.resnets + 1);
            input = *channels;
        }
        resnets
    }
}

/// The four projections of the middle's attention: query, key, value, output.
pub fn attention_names(old: bool) -> [&'static str; 4] {
    if old { ["query", "key", "value", "proj_attn"] } else { ["to_q", "to_k", "to_v", "to_out.0"] }
}

struct VaeResnet {
    name: String,
    input: usize,
    output: usize,
}
