use super::config::{MidBlock, UNetConfig};

/// The attention of one level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attention {
    /// Heads.
    pub heads: usize,
    /// Channels of one head: those of the level divided by the heads, rounded down.
    pub head_dim: usize,
    /// Channels of the text embedding.
    pub context: usize,
    /// Whether `attn1` attends to the text as well, and so is no layer of ours.
    pub only_cross_attention: bool,
}

/// One level of the way down or up, as the configuration gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Level {
    pub(super) channels: usize,
    pub(super) resnets: usize,
    pub(super) attention: Option<Attention>,
    /// Transformer blocks after each resnet; empty without attention.
    pub(super) depths: Vec<usize>,
}

/// The modules of a model, in the order of its forward pass. Names are diffusers' module paths.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The way down.
    pub down: Vec<Stage>,
    /// The block in the middle.
    pub mid: Option<Stage>,
    /// The way up.
    pub up: Vec<Stage>,
}

/// One block: resnets, each followed by a transformer where it has attention, and a change of size.
#[derive(Debug, Clone, PartialEq)]
pub struct Stage {
    /// Resnets. On the way up each one's input is joined with the newest output of the way down not yet used.
    pub resnets: Vec<Resnet>,
    /// Empty, or one for each resnet; in the mid block one fewer, each between two resnets.
    pub transformers: Vec<Transformer>,
    /// Channels that the block puts out.
    pub channels: usize,
    /// The convolution that changes the size, after everything else: `….downsamplers.0.conv` or `….upsamplers.0.conv`.
    pub resample: Option<String>,
}

/// A `ResnetBlock2D`.
#[derive(Debug, Clone, PartialEq)]
pub struct Resnet {
    /// Its path.
    pub name: String,
    /// Channels in. Where they differ from those out there is a `conv_shortcut`.
    pub input: usize,
    /// Channels out.
    pub output: usize,
    /// What input + residual is divided by.
    pub scale_factor: f64,
}

/// A `Transformer2DModel` over the pixels of a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transformer {
    /// Its path.
    pub name: String,
    /// Channels of the map.
    pub channels: usize,
    /// Its attention; inside, it is `heads · head_dim` wide.
    pub attention: Attention,
    /// `transformer_blocks.0` to `.depth − 1`.
    pub depth: usize,
}

impl Transformer {
    /// Channels inside the transformer: what its layers' inputs and outputs have.
    pub fn inner(&self) -> usize {
        self.attention.heads * self.attention.head_dim
    }

    /// The paths of its blocks. Unless it attends to the text only, each is a layer.
    pub fn blocks(&self) -> impl Iterator<Item = String> + '_ {
        (0..self.depth).map(|i| format!("{}.transformer_blocks.{i}", self.name))
    }
}

impl Plan {
    /// All blocks in the order of the forward pass.
    pub fn stages(&self) -> impl Iterator<Item = &Stage> {
        self.down.iter().chain(&self.mid).chain(&self.up)
    }
}

impl UNetConfig {
    /// The modules that the configuration makes.
    pub fn plan(&self) -> Plan {
        let last = self.down.len() - 1;
        let mut down = Vec::new();
        let mut channels = self.time.channels;
        for (i, level) in self.down.iter().enumerate() {
            let path = format!("down_blocks.{i}");
            let inputs = (0..level.resnets).map(|r| if r == 0 { channels } else { level.channels }).collect();
            down.push(level.stage(&path, inputs, (i < last).then_some("downsamplers")));
            channels = level.channels;
        }

        let mid = self.mid.map(|kind| self.mid_stage(kind, channels));

        let mut up = Vec::new();
        for (i, level) in self.up.iter().enumerate() {
            let path = format!("up_blocks.{i}");
            // The last thing joined on this level is what the level above it put out (for the highest: conv_in).
            let above = self.up[(i + 1).min(last)].channels;
            let inputs = (0..level.resnets)
                .map(|r| {
                    let own = if r == 0 { channels } else { level.channels };
                    let joined = if r + 1 == level.resnets { above } else { level.channels };
                    own + joined
                })
                .collect();
            up.push(level.stage(&path, inputs, (i < last).then_some("upsamplers")));
            channels = level.channels;
        }
        Plan { down, mid, up }
    }

    fn mid_stage(&self, kind: MidBlock, channels: usize) -> Stage {
        let resnet = |i: usize| Resnet {
            name: format!("mid_block.resnets.{i}"),
            input: channels,
            output: channels,
            scale_factor: self.mid_block_scale_factor,
        };
        let (resnets, transformers) = match kind {
            MidBlock::Plain => (vec![resnet(0)], vec![]),
            MidBlock::CrossAttention { depth } => {
                let name = "mid_block.attentions.0".to_owned();
                let transformer = Transformer { name, channels, attention: self.mid_attention, depth };
                (vec![resnet(0), resnet(1)], vec![transformer])
            }
        };
        Stage { resnets, transformers, channels, resample: None }
    }
}

impl Level {
    fn stage(&self, path: &str, inputs: Vec<usize>, resample: Option<&str>) -> Stage {
        let resnets = inputs.into_iter().enumerate().map(|(i, input)| Resnet {
            name: format!("{path}.resnets.{i}"),
            input,
            output: self.channels,
            scale_factor: 1.0,
        });
        let transformers = self.attention.into_iter().flat_map(|attention| {
            self.depths.iter().enumerate().map(move |(i, &depth)| Transformer {
                name: format!("{path}.attentions.{i}"),
                channels: self.channels,
                attention,
                depth,
            })
        });
        Stage {
            resnets: resnets.collect(),
            transformers: transformers.collect(),
            channels: self.channels,
            resample: resample.map(|kind| format!("{path}.{kind}.0.conv")),
        }
    }
}
