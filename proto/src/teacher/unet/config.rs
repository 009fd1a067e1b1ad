use serde_json::Value;

use super::super::Error;
use super::super::fields::{Fields, count, invalid, shown};
use super::plan::{Attention, Level};

// Bounds on what a configuration may ask for, far above any published model, so that a hostile one costs little.
const MAX_LEVELS: usize = 16;
const MAX_CHANNELS: usize = 1 << 16;
const MAX_KERNEL: usize = 31;
const MAX_RESNETS: usize = 32;
const MAX_DEPTH: usize = 64;
const MAX_SAMPLE_SIZE: usize = 1 << 16;
/// Bound on all transformer blocks together; SDXL has 70.
const MAX_TRANSFORMER_BLOCKS: usize = 4096;

/// An activation function by diffusers' names (`models/activations.py`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x · sigmoid(x): `silu`, `swish`.
    Silu,
    /// x · Φ(x), exact: `gelu`.
    Gelu,
    /// x · tanh(softplus(x)): `mish`.
    Mish,
    /// max(x, 0): `relu`.
    Relu,
}

/// How the time embedding enters a resnet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeScaleShift {
    /// Added before the second norm: `default`.
    Shift,
    /// Scale and shift after the second norm: `scale_shift`.
    ScaleShift,
}

/// The block between the way down and the way up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MidBlock {
    /// Resnet, transformer, resnet: `UNetMidBlock2DCrossAttn`.
    CrossAttention {
        /// Transformer blocks.
        depth: usize,
    },
    /// One resnet: `UNetMidBlock2D`.
    Plain,
}

/// The sinusoidal embedding of the timestep and the two linears after it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TimeEmbedding {
    /// Channels of the sinusoids.
    pub channels: usize,
    /// Channels of the embedding.
    pub dim: usize,
    /// Whether the cosines come first.
    pub flip_sin_to_cos: bool,
    /// Frequency i is 10000^(−i / (channels/2 − shift)).
    pub freq_shift: f64,
    /// After the second linear: `timestep_post_act`.
    pub post_activation: Option<Activation>,
    /// After that, once for all resnets: `time_embedding_act_fn`.
    pub final_activation: Option<Activation>,
}

/// What is added to the time embedding: the pooled text and numbers about the picture, SDXL's `text_time`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddedEmbedding {
    /// Channels of both together, which two linears bring to those of the time embedding.
    pub input: usize,
    /// Channels of the sinusoids of each number.
    pub time_channels: usize,
}

/// A `UNet2DConditionModel` with every choice made; see [`UNetConfig::plan`] for its modules.
#[derive(Debug, Clone, PartialEq)]
pub struct UNetConfig {
    /// Height and width of the latents it was trained at, where given.
    pub sample_size: Option<(usize, usize)>,
    /// Channels of the latents.
    pub in_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// Whether the input x becomes 2x − 1.
    pub center_input_sample: bool,
    /// Kernel of the first convolution.
    pub conv_in_kernel: usize,
    /// Kernel of the last convolution.
    pub conv_out_kernel: usize,
    /// The embedding of the timestep.
    pub time: TimeEmbedding,
    /// What is added to it; none in most models.
    pub added: Option<AddedEmbedding>,
    /// Activation of resnets, of the time embedding and before the last convolution.
    pub activation: Activation,
    /// Groups of every group norm.
    pub norm_num_groups: usize,
    /// ε of the group norms outside the transformers.
    pub norm_eps: f64,
    /// How the time embedding enters the resnets.
    pub time_scale_shift: TimeScaleShift,
    /// Padding of the convolutions of stride 2; 0 pads the lower and right edge only.
    pub downsample_padding: usize,
    /// What the mid block's resnets are divided by.
    pub mid_block_scale_factor: f64,
    /// Whether transformers are entered and left by linears (else by 1×1 convolutions).
    pub use_linear_projection: bool,
    pub(super) down: Vec<Level>,
    pub(super) mid: Option<MidBlock>,
    pub(super) mid_attention: Attention,
    pub(super) up: Vec<Level>,
}

/// Fields that change nothing in a model of the supported blocks.
///
/// `resnet_skip_time_act`, `resnet_out_scale_factor`, `cross_attention_norm` and `mid_block_only_cross_attention` reach
/// only block types that are refused; `addition_embed_type_num_heads` only an embedding that is refused;
/// `upcast_attention` only computes in f32, as we always do. The last row is what diffusers' `EMAModel` leaves in the
/// configurations it saves.
const WITHOUT_EFFECT: &[&str] = &[
    "_class_name",
    "_diffusers_version",
    "_name_or_path",
    "addition_embed_type_num_heads",
    "cross_attention_norm",
    "dropout",
    "mid_block_only_cross_attention",
    "resnet_out_scale_factor",
    "resnet_skip_time_act",
    "upcast_attention",
    "decay",
    "inv_gamma",
    "min_decay",
    "optimization_step",
    "power",
    "update_after_step",
    "use_ema_warmup",
];

impl UNetConfig {
    pub(in super::super) fn from_fields(mut fields: Fields) -> Result<Self, Error> {
        let config = Self::read(&mut fields)?;
        fields.finish()?;
        config.check_groups()?;
        Ok(config)
    }

    fn read(fields: &mut Fields) -> Result<Self, Error> {
        refuse_what_is_missing_here(fields)?;
        fields.ignore(WITHOUT_EFFECT);

        let block_out_channels = channels_of_levels(fields)?;
        let (down, mid, mid_attention, up) = levels_of(fields, &block_out_channels)?;
        Ok(Self {
            sample_size: sample_size(fields)?,
            in_channels: fields.count("in_channels", 4, 1, MAX_CHANNELS)?,
            out_channels: fields.count("out_channels", 4, 1, MAX_CHANNELS)?,
            center_input_sample: fields.bool("center_input_sample", false)?,
            conv_in_kernel: fields.count("conv_in_kernel", 3, 1, MAX_KERNEL)?,
            conv_out_kernel: fields.count("conv_out_kernel", 3, 1, MAX_KERNEL)?,
            time: time_embedding(fields, block_out_channels[0])?,
            added: added_embedding(fields)?,
            activation: activation(fields, "act_fn", Some("silu"))?.unwrap_or(Activation::Silu),
            norm_num_groups: fields.count("norm_num_groups", 32, 1, MAX_CHANNELS)?,
            norm_eps: positive(fields, "norm_eps", 1e-5)?,
            time_scale_shift: match fields.string("resnet_time_scale_shift", Some("default"))?.as_deref() {
                Some("default") => TimeScaleShift::Shift,
                Some("scale_shift") => TimeScaleShift::ScaleShift,
                other => return Err(unsupported("resnet_time_scale_shift", other, "default, scale_shift")),
            },
            downsample_padding: fields.count("downsample_padding", 1, 0, MAX_KERNEL)?,
            mid_block_scale_factor: positive(fields, "mid_block_scale_factor", 1.0)?,
            use_linear_projection: fields.bool("use_linear_projection", false)?,
            down,
            mid,
            mid_attention,
            up,
        })
    }

    /// Every group norm's channels must be a multiple of the groups.
    fn check_groups(&self) -> Result<(), Error> {
        let plan = self.plan();
        let resnets = plan.stages().flat_map(|stage| &stage.resnets);
        let normed = resnets.flat_map(|resnet| [resnet.input, resnet.output]);
        for channels in normed.chain([self.time.channels]) {
            if !channels.is_multiple_of(self.norm_num_groups) {
                let value = Value::from(self.norm_num_groups);
                let expected = format!("a divisor of the {channels} channels of one of the model's group norms");
                return Err(invalid("norm_num_groups", &value, &expected));
            }
        }
        Ok(())
    }
}

/// What a later step may add: refused by name and value.
fn refuse_what_is_missing_here(fields: &mut Fields) -> Result<(), Error> {
    for (field, harmless, supported) in [
        ("attention_type", Value::from("default"), "\"default\""),
        ("class_embed_type", Value::Null, "null"),
        ("class_embeddings_concat", Value::Bool(false), "false"),
        ("dual_cross_attention", Value::Bool(false), "false"),
        ("encoder_hid_dim", Value::Null, "null"),
        ("encoder_hid_dim_type", Value::Null, "null"),
        // diffusers refuses it too: the heads are in `attention_head_dim`, whatever its name says.
        ("num_attention_heads", Value::Null, "null, with the number of heads in `attention_head_dim`"),
        ("num_class_embeds", Value::Null, "null"),
        ("time_cond_proj_dim", Value::Null, "null"),
        ("time_embedding_type", Value::from("positional"), "\"positional\""),
    ] {
        fields.refuse_unless(field, &harmless, supported)?;
    }
    Ok(())
}

fn channels_of_levels(fields: &mut Fields) -> Result<Vec<usize>, Error> {
    const FIELD: &str = "block_out_channels";
    let value = fields.take(FIELD).unwrap_or_else(|| Value::from(vec![320, 640, 1280, 1280]));
    match value.as_array() {
        Some(list) if (1..=MAX_LEVELS).contains(&list.len()) => {
            list.iter().map(|channels| count(FIELD, channels, 1, MAX_CHANNELS)).collect()
        }
        _ => Err(invalid(FIELD, &value, &format!("a list of 1 to {MAX_LEVELS} channel counts"))),
    }
}

type Levels = (Vec<Level>, Option<MidBlock>, Attention, Vec<Level>);

/// The levels of the way down and up, with diffusers' rules for values that are given once or for each level.
fn levels_of(fields: &mut Fields, channels: &[usize]) -> Result<Levels, Error> {
    let n = channels.len();
    let down_types = block_types(fields, "down_block_types", n, ["CrossAttnDownBlock2D", "DownBlock2D"], false)?;
    let up_types = block_types(fields, "up_block_types", n, ["CrossAttnUpBlock2D", "UpBlock2D"], true)?;
    let mid_type = fields.string("mid_block_type", Some("UNetMidBlock2DCrossAttn"))?;
    let resnets =
        per_level(fields, "layers_per_block", &Value::from(2), n, |v| count("layers_per_block", v, 1, MAX_RESNETS))?;
    let only_cross = per_level(fields, "only_cross_attention", &Value::Bool(false), n, |v| {
        v.as_bool().ok_or_else(|| invalid("only_cross_attention", v, "true or false"))
    })?;
    let context = per_level(fields, "cross_attention_dim", &Value::from(1280), n, |v| {
        count("cross_attention_dim", v, 1, MAX_CHANNELS)
    })?;
    // The historic naming: `attention_head_dim` is the number of heads, not their width.
    let heads = per_level(fields, "attention_head_dim", &Value::from(8), n, |v| {
        count("attention_head_dim", v, 1, MAX_CHANNELS)
    })?;
    let depths = per_level(fields, "transformer_layers_per_block", &Value::from(1), n, |v| {
        Depth::parse("transformer_layers_per_block", v)
    })?;
    let up_depths = up_depths(fields, &depths)?;

    let attention = |level: usize, only_cross_attention| -> Result<Attention, Error> {
        let (heads, channels) = (heads[level], channels[level]);
        if heads > channels {
            let expected = format!("at most the {channels} channels of its level");
            return Err(invalid("attention_head_dim", &Value::from(heads), &expected));
        }
        Ok(Attention { heads, head_dim: channels / heads, context: context[level], only_cross_attention })
    };
    let (mut down, mut up) = (Vec::with_capacity(n), Vec::with_capacity(n));
    for level in 0..n {
        let attention = if down_types[level] { Some(attention(level, only_cross[level])?) } else { None };
        let depths = depths[level].of_layers("transformer_layers_per_block", resnets[level], attention.is_some())?;
        down.push(Level { channels: channels[level], resnets: resnets[level], attention, depths });
    }
    for (i, level) in (0..n).rev().enumerate() {
        let resnets = resnets[level] + 1;
        let attention = if up_types[i] { Some(attention(level, only_cross[level])?) } else { None };
        let depths = up_depths[i].of_layers("reverse_transformer_layers_per_block", resnets, attention.is_some())?;
        up.push(Level { channels: channels[level], resnets, attention, depths });
    }
    let mid = match mid_type.as_deref() {
        None => None,
        Some("UNetMidBlock2D") => Some(MidBlock::Plain),
        Some("UNetMidBlock2DCrossAttn") => {
            let depth = depths[n - 1].of_layers("transformer_layers_per_block", 1, true)?[0];
            Some(MidBlock::CrossAttention { depth })
        }
        other => {
            return Err(unsupported("mid_block_type", other, "UNetMidBlock2DCrossAttn, UNetMidBlock2D, null"));
        }
    };
    // diffusers does not hand `only_cross_attention` to this block.
    let mid_attention = match mid {
        Some(MidBlock::CrossAttention { .. }) => attention(n - 1, false)?,
        _ => Attention { heads: 1, head_dim: channels[n - 1], context: context[n - 1], only_cross_attention: false },
    };

    let blocks: usize = down.iter().chain(&up).flat_map(|level| &level.depths).sum();
    if blocks > MAX_TRANSFORMER_BLOCKS {
        let expected = format!("at most {MAX_TRANSFORMER_BLOCKS} transformer blocks in all");
        return Err(invalid("transformer_layers_per_block", &Value::from(blocks), &expected));
    }
    Ok((down, mid, mid_attention, up))
}

/// For each level whether its block has attention. diffusers drops an old prefix, `UNetRes`, of the names.
fn block_types(
    fields: &mut Fields,
    field: &'static str,
    levels: usize,
    [with_attention, without]: [&'static str; 2],
    up: bool,
) -> Result<Vec<bool>, Error> {
    let default: Vec<&str> = match up {
        false => vec!["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        true => vec!["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    };
    let value = fields.take(field).unwrap_or_else(|| Value::from(default));
    let Some(list) = value.as_array().filter(|list| list.len() == levels) else {
        return Err(invalid(field, &value, &format!("a list of {levels} block types, as many as block_out_channels")));
    };
    let has_attention = |kind: &Value| {
        let name = kind.as_str().map(|name| name.strip_prefix("UNetRes").unwrap_or(name));
        match name {
            Some(name) if name == with_attention => Ok(true),
            Some(name) if name == without => Ok(false),
            _ => {
                let supported = if up { "CrossAttnUpBlock2D, UpBlock2D" } else { "CrossAttnDownBlock2D, DownBlock2D" };
                Err(Error::Unsupported { field, value: shown(kind), supported })
            }
        }
    };
    list.iter().map(has_attention).collect()
}

/// A value for all levels, or a list with one for each.
fn per_level<T>(
    fields: &mut Fields,
    field: &'static str,
    default: &Value,
    levels: usize,
    parse: impl Fn(&Value) -> Result<T, Error>,
) -> Result<Vec<T>, Error> {
    let value = fields.take(field).unwrap_or_else(|| default.clone());
    match &value {
        Value::Array(list) if list.len() == levels => list.iter().map(parse).collect(),
        Value::Array(_) => {
            Err(invalid(field, &value, &format!("one value, or a list of {levels}, one for each level")))
        }
        one => (0..levels).map(|_| parse(one)).collect(),
    }
}

/// Transformer blocks of one level: as many after each resnet, or a number for each.
#[derive(Clone)]
enum Depth {
    Same(usize),
    Each(Vec<usize>),
}

impl Depth {
    fn parse(field: &'static str, value: &Value) -> Result<Self, Error> {
        let depth = |value: &Value| count(field, value, 0, MAX_DEPTH);
        match value {
            Value::Array(list) => list.iter().map(depth).collect::<Result<_, _>>().map(Self::Each),
            one => depth(one).map(Self::Same),
        }
    }

    /// One depth for each of `layers` resnets; none at all on a level without attention. A list may be longer than is
    /// needed, as in diffusers: the mid block reads the first of the last level's.
    fn of_layers(&self, field: &'static str, layers: usize, attention: bool) -> Result<Vec<usize>, Error> {
        match self {
            _ if !attention => Ok(Vec::new()),
            Self::Same(depth) => Ok(vec![*depth; layers]),
            Self::Each(list) => match list.get(..layers) {
                Some(depths) => Ok(depths.to_vec()),
                None => {
                    Err(invalid(field, &Value::from(list.clone()), &format!("{layers} numbers, one for each resnet")))
                }
            },
        }
    }
}

/// The depths on the way up: the reverse of those on the way down, or given in `reverse_…`, from the lowest level up.
fn up_depths(fields: &mut Fields, down: &[Depth]) -> Result<Vec<Depth>, Error> {
    const FIELD: &str = "reverse_transformer_layers_per_block";
    match fields.take(FIELD) {
        None | Some(Value::Null) => {
            if let Some(Depth::Each(list)) = down.iter().find(|depth| matches!(depth, Depth::Each(_))) {
                let expected = format!("numbers, or lists together with `{FIELD}`");
                return Err(invalid("transformer_layers_per_block", &Value::from(list.clone()), &expected));
            }
            Ok(down.iter().rev().cloned().collect())
        }
        Some(Value::Array(list)) if list.len() == down.len() => {
            list.iter().map(|value| Depth::parse(FIELD, value)).collect()
        }
        Some(other) => Err(invalid(FIELD, &other, &format!("null or a list of {}", down.len()))),
    }
}

fn time_embedding(fields: &mut Fields, channels: usize) -> Result<TimeEmbedding, Error> {
    let dim = match fields.take("time_embedding_dim") {
        None | Some(Value::Null) => channels * 4,
        Some(value) => match count("time_embedding_dim", &value, 0, MAX_CHANNELS * 4)? {
            // Python's `time_embedding_dim or …`
            0 => channels * 4,
            dim => dim,
        },
    };
    let freq_shift = fields.number("freq_shift", 0.0)?;
    if freq_shift == (channels / 2) as f64 {
        return Err(invalid("freq_shift", &Value::from(freq_shift), "anything but half of block_out_channels[0]"));
    }
    Ok(TimeEmbedding {
        channels,
        dim,
        flip_sin_to_cos: fields.bool("flip_sin_to_cos", true)?,
        freq_shift,
        post_activation: activation(fields, "timestep_post_act", None)?,
        final_activation: activation(fields, "time_embedding_act_fn", None)?,
    })
}

fn added_embedding(fields: &mut Fields) -> Result<Option<AddedEmbedding>, Error> {
    // Both are often there in models that have no such embedding, where they change nothing.
    let time_channels = fields.take("addition_time_embed_dim");
    let input = fields.take("projection_class_embeddings_input_dim");
    match fields.string("addition_embed_type", None)?.as_deref() {
        None => Ok(None),
        Some("text_time") => {
            let given = |field, value: Option<Value>| count(field, &value.unwrap_or(Value::Null), 1, MAX_CHANNELS);
            let time_channels = given("addition_time_embed_dim", time_channels)?;
            let input = given("projection_class_embeddings_input_dim", input)?;
            Ok(Some(AddedEmbedding { input, time_channels }))
        }
        other => Err(unsupported("addition_embed_type", other, "null, \"text_time\"")),
    }
}

fn activation(fields: &mut Fields, field: &'static str, default: Option<&str>) -> Result<Option<Activation>, Error> {
    let Some(name) = fields.string(field, default)? else {
        return match default {
            None => Ok(None),
            Some(_) => Err(unsupported(field, None, "silu, swish, gelu, mish, relu")),
        };
    };
    match name.to_lowercase().as_str() {
        "silu" | "swish" => Ok(Some(Activation::Silu)),
        "gelu" => Ok(Some(Activation::Gelu)),
        "mish" => Ok(Some(Activation::Mish)),
        "relu" => Ok(Some(Activation::Relu)),
        _ => Err(unsupported(field, Some(&name), "silu, swish, gelu, mish, relu")),
    }
}

fn sample_size(fields: &mut Fields) -> Result<Option<(usize, usize)>, Error> {
    const FIELD: &str = "sample_size";
    let side = |value: &Value| count(FIELD, value, 1, MAX_SAMPLE_SIZE);
    match fields.take(FIELD) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(sides)) if sides.len() == 2 => Ok(Some((side(&sides[0])?, side(&sides[1])?))),
        Some(value) => side(&value).map(|side| Some((side, side))),
    }
}

fn positive(fields: &mut Fields, field: &'static str, default: f64) -> Result<f64, Error> {
    match fields.number(field, default)? {
        value if value > 0.0 => Ok(value),
        value => Err(invalid(field, &Value::from(value), "a number above 0")),
    }
}

fn unsupported(field: &'static str, value: Option<&str>, supported: &'static str) -> Error {
    Error::Unsupported { field, value: shown(&value.map_or(Value::Null, Value::from)), supported }
}
