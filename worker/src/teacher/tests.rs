//! The shipped teacher: the same bits in every batch and with any number of threads, and layers that can be replaced.

use std::fs;
use std::path::PathBuf;

use candle_core::{Device, Tensor};
use deltaconv_proto::safetensors::{Dtype, serialize_header};
use deltaconv_proto::teacher::{Teacher, UNetConfig};

use super::{Call, Error, LoadOptions, Original, Removed, SelfAttention, UNet, Weights};

mod gradients;

fn unet(json: &[u8]) -> UNetConfig {
    let Teacher::UNet(config) = Teacher::parse(json).unwrap() else { panic!("not a UNet") };
    config
}

fn shipped() -> UNet {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../cli/teachers/tiny-unet/unet");
    let config = unet(&fs::read(folder.join("config.json")).unwrap());
    let mut weights = Weights::open([folder.join("diffusion_pytorch_model.safetensors")]).unwrap();
    UNet::load(&config, &mut weights, &LoadOptions::default()).unwrap()
}

/// Numbers of about −1 to 1 that follow from the shape.
fn numbers(shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    let values: Vec<f32> =
        (0..count as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / 8_388_608.0 - 1.0).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

#[test]
fn bits_depend_neither_on_threads_nor_on_the_batch() {
    let model = shipped();
    let (sample, text) = (numbers(&[2, 3, 32, 32]), numbers(&[2, 4, 64]));
    let timestep = Tensor::new(&[17_i64, 801], &Device::Cpu).unwrap();
    let with_threads = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| model.forward(&sample, &timestep, &text.clone().into(), &mut Original).unwrap())
    };
    let both = with_threads(1);
    assert_eq!(bits(&both), bits(&with_threads(2)));
    let second = |tensor: &Tensor| tensor.narrow(0, 1, 1).unwrap();
    let alone = model.forward(&second(&sample), &second(&timestep), &second(&text).into(), &mut Original).unwrap();
    assert_eq!(bits(&second(&both)), bits(&alone));
}

/// Leaves out one layer.
struct Without(usize);

impl SelfAttention for Without {
    fn apply(&mut self, call: &Call<'_>) -> Result<Tensor, Error> {
        if call.layer.index == self.0 { Removed::default().apply(call) } else { call.attention() }
    }
}

#[test]
fn layers_can_be_replaced() {
    let model = shipped();
    let (sample, text, timestep) = (numbers(&[1, 3, 32, 32]), numbers(&[1, 4, 64]), numbers(&[1]));
    let run = |attention: &mut dyn SelfAttention| {
        bits(&model.forward(&sample, &timestep, &text.clone().into(), attention).unwrap())
    };
    let original = run(&mut Original);
    assert_ne!(original, run(&mut Without(3)));
    assert_eq!(original, run(&mut Without(99)));
}

/// A model of random weights that has everything the shipped one has not.
fn unusual() -> (UNetConfig, Vec<u8>) {
    let config = unet(
        br#"{"_class_name": "UNet2DConditionModel", "in_channels": 5, "out_channels": 2, "center_input_sample": true,
        "block_out_channels": [16, 24], "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"], "layers_per_block": [1, 2],
        "norm_num_groups": 4, "cross_attention_dim": 8, "attention_head_dim": [2, 5],
        "only_cross_attention": [true, false], "use_linear_projection": true, "resnet_time_scale_shift": "scale_shift",
        "act_fn": "gelu", "timestep_post_act": "mish", "time_embedding_act_fn": "relu", "downsample_padding": 0,
        "mid_block_scale_factor": 1.4142, "conv_in_kernel": 5, "conv_out_kernel": 1, "flip_sin_to_cos": false,
        "freq_shift": 1, "transformer_layers_per_block": [1, 2]}"#,
    );
    let tensors = config.tensors();
    let entries = tensors.iter().map(|(name, shape)| (name.as_str(), Dtype::F32, shape.as_slice()));
    let mut bytes = serialize_header(entries, &Default::default()).unwrap();
    for (_, shape) in &tensors {
        for value in numbers(shape).flatten_all().unwrap().to_vec1::<f32>().unwrap() {
            bytes.extend_from_slice(&(value * 0.2).to_le_bytes());
        }
    }
    (config, bytes)
}

#[test]
fn an_unusual_model_runs_with_odd_latents_and_without_its_attention() {
    let (config, bytes) = unusual();
    let layers = config.layers(7, 10).unwrap();
    let without = LoadOptions { replaced: layers.iter().map(|layer| layer.name.clone()).collect() };
    let load = |options: &LoadOptions| {
        let mut weights = Weights::default();
        weights.add_bytes(bytes.clone()).unwrap();
        UNet::load(&config, &mut weights, options).unwrap()
    };
    let (sample, text, timestep) = (numbers(&[2, 5, 7, 10]), numbers(&[2, 3, 8]), numbers(&[2]));
    let output =
        load(&LoadOptions::default()).forward(&sample, &timestep, &text.clone().into(), &mut Original).unwrap();
    assert_eq!(output.dims(), [2, 2, 7, 10]);
    assert!(bits(&output).iter().all(|bits| f32::from_bits(*bits).is_finite()));

    let student = load(&without);
    let removed = student.forward(&sample, &timestep, &text.clone().into(), &mut Removed::default()).unwrap();
    assert_eq!(removed.dims(), output.dims());
    let asked = student.forward(&sample, &timestep, &text.clone().into(), &mut Original);
    assert!(matches!(asked, Err(Error::NoAttention { layer }) if layer == layers[0].name));
}

#[test]
fn arguments_that_do_not_fit_are_errors() {
    let model = shipped();
    let argument = |sample: &[usize], timestep: &[usize], text: &[usize]| match model.forward(
        &numbers(sample),
        &numbers(timestep),
        &numbers(text).into(),
        &mut Original,
    ) {
        Err(Error::Argument { argument, .. }) => argument,
        Err(Error::Tensor(_)) => "tensor",
        other => panic!("{other:?}"),
    };
    assert_eq!(argument(&[1, 4, 32, 32], &[1], &[1, 4, 64]), "sample");
    assert_eq!(argument(&[2, 3, 32, 32], &[3], &[2, 4, 64]), "timestep");
    assert_eq!(argument(&[2, 3, 32, 32], &[2], &[1, 4, 64]), "encoder_hidden_states");
    assert_eq!(argument(&[1, 3, 32, 32], &[1], &[1, 4, 63]), "tensor");
}
