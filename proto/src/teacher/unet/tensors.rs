use super::config::{TimeScaleShift, UNetConfig};
use super::plan::{Resnet, Transformer};

/// Tensors under construction: names with shapes, PyTorch's layouts.
#[derive(Default)]
struct Tensors(Vec<(String, Vec<usize>)>);

impl Tensors {
    fn push(&mut self, name: &str, shape: &[usize]) {
        self.0.push((name.to_owned(), shape.to_vec()));
    }

    /// Weight and bias of one length.
    fn norm(&mut self, name: &str, channels: usize) {
        self.push(&format!("{name}.weight"), &[channels]);
        self.push(&format!("{name}.bias"), &[channels]);
    }

    fn linear(&mut self, name: &str, input: usize, output: usize) {
        self.push(&format!("{name}.weight"), &[output, input]);
        self.push(&format!("{name}.bias"), &[output]);
    }

    fn conv(&mut self, name: &str, input: usize, output: usize, kernel: usize) {
        self.push(&format!("{name}.weight"), &[output, input, kernel, kernel]);
        self.push(&format!("{name}.bias"), &[output]);
    }

    fn resnet(&mut self, resnet: &Resnet, time: usize, scale_shift: TimeScaleShift) {
        let Resnet { name, input, output, .. } = resnet;
        let projected = match scale_shift {
            TimeScaleShift::Shift => *output,
            TimeScaleShift::ScaleShift => 2 * output,
        };
        self.norm(&format!("{name}.norm1"), *input);
        self.conv(&format!("{name}.conv1"), *input, *output, 3);
        self.linear(&format!("{name}.time_emb_proj"), time, projected);
        self.norm(&format!("{name}.norm2"), *output);
        self.conv(&format!("{name}.conv2"), *output, *output, 3);
        if input != output {
            self.conv(&format!("{name}.conv_shortcut"), *input, *output, 1);
        }
    }

    fn transformer(&mut self, transformer: &Transformer, linear_projection: bool) {
        let Transformer { name, channels, attention, .. } = transformer;
        let inner = transformer.inner();
        let projection = |tensors: &mut Self, path: &str, input, output| {
            let path = format!("{name}.{path}");
            if linear_projection { tensors.linear(&path, input, output) } else { tensors.conv(&path, input, output, 1) }
        };
        self.norm(&format!("{name}.norm"), *channels);
        projection(self, "proj_in", *channels, inner);
        for block in transformer.blocks() {
            self.norm(&format!("{block}.norm1"), inner);
            let attn1_context = if attention.only_cross_attention { attention.context } else { inner };
            self.attention(&format!("{block}.attn1"), inner, attn1_context);
            self.norm(&format!("{block}.norm2"), inner);
            self.attention(&format!("{block}.attn2"), inner, attention.context);
            self.norm(&format!("{block}.norm3"), inner);
            self.linear(&format!("{block}.ff.net.0.proj"), inner, 8 * inner);
            self.linear(&format!("{block}.ff.net.2"), 4 * inner, inner);
        }
        projection(self, "proj_out", inner, *channels);
    }

    fn attention(&mut self, name: &str, inner: usize, context: usize) {
        self.push(&format!("{name}.to_q.weight"), &[inner, inner]);
        self.push(&format!("{name}.to_k.weight"), &[inner, context]);
        self.push(&format!("{name}.to_v.weight"), &[inner, context]);
        self.linear(&format!("{name}.to_out.0"), inner, inner);
    }
}

impl UNetConfig {
    /// Name and shape of every tensor of the model.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let mut tensors = Tensors::default();
        let first = self.time.channels;
        tensors.conv("conv_in", self.in_channels, first, self.conv_in_kernel);
        tensors.linear("time_embedding.linear_1", first, self.time.dim);
        tensors.linear("time_embedding.linear_2", self.time.dim, self.time.dim);
        if let Some(added) = self.added {
            tensors.linear("add_embedding.linear_1", added.input, self.time.dim);
            tensors.linear("add_embedding.linear_2", self.time.dim, self.time.dim);
        }
        for stage in self.plan().stages() {
            for resnet in &stage.resnets {
                tensors.resnet(resnet, self.time.dim, self.time_scale_shift);
            }
            for transformer in &stage.transformers {
                tensors.transformer(transformer, self.use_linear_projection);
            }
            if let Some(name) = &stage.resample {
                tensors.conv(name, stage.channels, stage.channels, 3);
            }
        }
        tensors.norm("conv_norm_out", first);
        tensors.conv("conv_out", first, self.out_channels, self.conv_out_kernel);
        tensors.0
    }
}
