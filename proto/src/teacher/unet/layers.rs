use super::super::{Error, Layer};
use super::config::UNetConfig;
use super::plan::{Stage, Transformer};

/// Height and width of a map.
type Size = (usize, usize);

impl UNetConfig {
    /// The self-attention layers in the order of the forward pass, with the size of their maps for latents of `height` ×
    /// `width`.
    ///
    /// # Errors
    /// [`Error::MapSize`] where the latents are too small for a convolution, or the way up does not meet the sizes of
    /// the way down.
    pub fn layers(&self, height: usize, width: usize) -> Result<Vec<Layer>, Error> {
        let at_fault = |at: &str, reason: String| Error::MapSize { height, width, at: at.to_owned(), reason };
        let plan = self.plan();
        let mut layers = Vec::new();
        let same = |kernel: usize| (kernel - 1) / 2;
        let mut size = convolved((height, width), self.conv_in_kernel, 1, 2 * same(self.conv_in_kernel))
            .ok_or_else(|| at_fault("conv_in", "the map is smaller than the kernel".to_owned()))?;

        let mut skips = vec![size];
        for stage in &plan.down {
            stage.push_layers(size, &mut layers);
            skips.extend(stage.resnets.iter().map(|_| size));
            if let Some(name) = &stage.resample {
                size = convolved(size, 3, 2, self.downsample_edges())
                    .ok_or_else(|| at_fault(name, format!("nothing is left of a map of {}×{}", size.0, size.1)))?;
                skips.push(size);
            }
        }
        if let Some(stage) = &plan.mid {
            stage.push_layers(size, &mut layers);
        }
        for stage in &plan.up {
            let joined = skips.split_off(skips.len().saturating_sub(stage.resnets.len()));
            if let Some(skip) = joined.iter().find(|skip| **skip != size) {
                let at = stage.resnets.first().map_or("", |resnet| &resnet.name);
                let ((h, w), (sh, sw)) = (size, *skip);
                return Err(at_fault(at, format!("a map of {h}×{w} meets one of {sh}×{sw} of the way down")));
            }
            stage.push_layers(size, &mut layers);
            if stage.resample.is_some() {
                size = match skips.last() {
                    Some(skip) if self.follows_skips(height, width) => *skip,
                    _ => (size.0 * 2, size.1 * 2),
                };
            }
        }
        convolved(size, self.conv_out_kernel, 1, 2 * same(self.conv_out_kernel))
            .ok_or_else(|| at_fault("conv_out", "the map is smaller than the kernel".to_owned()))?;
        Ok(layers)
    }

    /// Whether the way up takes its sizes from the way down instead of doubling: latents that the number of upsamplers
    /// does not divide evenly.
    pub fn follows_skips(&self, height: usize, width: usize) -> bool {
        let factor = 1_usize << (self.down.len() - 1);
        !height.is_multiple_of(factor) || !width.is_multiple_of(factor)
    }

    /// Rows (and columns) of zeros that a downsampling convolution adds to both edges together.
    fn downsample_edges(&self) -> usize {
        match self.downsample_padding {
            0 => 1,
            padding => 2 * padding,
        }
    }
}

/// The size of a map after a convolution; `None` where nothing is left. `edges` is the padding of both edges together.
fn convolved((height, width): Size, kernel: usize, stride: usize, edges: usize) -> Option<Size> {
    let side = |n: usize| Some((n.checked_add(edges)?.checked_sub(kernel)?) / stride + 1);
    (height > 0 && width > 0).then_some(())?;
    Some((side(height)?, side(width)?))
}

impl Stage {
    fn push_layers(&self, (height, width): Size, layers: &mut Vec<Layer>) {
        let with_layers = |transformer: &&Transformer| !transformer.attention.only_cross_attention;
        for transformer in self.transformers.iter().filter(with_layers) {
            for name in transformer.blocks() {
                layers.push(Layer {
                    name,
                    index: layers.len(),
                    channels: transformer.inner(),
                    heads: transformer.attention.heads,
                    height,
                    width,
                });
            }
        }
    }
}
