use serde_json::{Value, json};

use super::super::{Error, Layer, Teacher};
use crate::safetensors;

fn parse(mut fields: Value) -> Result<Teacher, Error> {
    fields["_class_name"] = Value::from("UNet2DConditionModel");
    Teacher::parse(fields.to_string().as_bytes())
}

fn sd15() -> Value {
    json!({"cross_attention_dim": 768, "sample_size": 64})
}

fn parameters(teacher: &Teacher) -> usize {
    teacher.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
}

#[test]
fn stable_diffusion_1_5_has_its_16_layers_and_860_million_parameters() {
    let teacher = parse(sd15()).unwrap();
    assert_eq!(parameters(&teacher), 859_520_964);
    assert_eq!(teacher.tensors().len(), 686);
    let layers = teacher.layers(64, 64).unwrap();
    assert_eq!(layers.len(), 16);
    let name = "up_blocks.3.attentions.2.transformer_blocks.0".to_owned();
    assert_eq!(layers[15], Layer { name, index: 15, channels: 320, heads: 8, height: 64, width: 64 });
    assert_eq!((layers[6].name.as_str(), layers[6].height), ("mid_block.attentions.0.transformer_blocks.0", 8));
}

#[test]
fn stable_diffusion_2_1_has_heads_by_level_and_linear_projections() {
    let fields =
        json!({"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": true});
    let teacher = parse(fields).unwrap();
    assert_eq!(parameters(&teacher), 865_910_724);
    let heads: Vec<usize> = teacher.layers(96, 96).unwrap().iter().map(|layer| layer.heads).collect();
    assert_eq!(heads, [5, 5, 10, 10, 20, 20, 20, 20, 20, 20, 10, 10, 10, 5, 5, 5]);
}

#[test]
fn nested_depths_need_their_reverse() {
    let fields = |reverse: Value| {
        json!({
            "block_out_channels": [32, 64, 128],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "mid_block_type": "UNetMidBlock2D",
            "transformer_layers_per_block": [1, [2, 2], [4, 3]],
            "reverse_transformer_layers_per_block": reverse,
        })
    };
    let teacher = parse(fields(json!([[4, 4, 5], [2, 1, 1], 1]))).unwrap();
    assert_eq!(teacher.layers(32, 32).unwrap().len(), 2 + 2 + 4 + 3 + 4 + 4 + 5 + 2 + 1 + 1);
    assert!(parse(fields(Value::Null)).is_err());
    assert!(parse(fields(json!([[4, 4], [2, 1, 1], 1]))).is_err());
}

#[test]
fn attention_to_the_text_only_is_no_layer() {
    let mut fields = sd15();
    fields["only_cross_attention"] = json!([true, false, false, false]);
    let teacher = parse(fields).unwrap();
    let layers = teacher.layers(64, 64).unwrap();
    assert_eq!(layers.len(), 16 - 2 - 3);
    let to_k = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k.weight";
    assert!(teacher.tensors().contains(&(to_k.to_owned(), vec![320, 768])));
}

#[test]
fn odd_latents_follow_the_way_down() {
    let teacher = parse(sd15()).unwrap();
    let layers = teacher.layers(36, 50).unwrap();
    let map = |i: usize| (layers[i].height, layers[i].width);
    assert_eq!([map(0), map(2), map(4), map(6)], [(36, 50), (18, 25), (9, 13), (5, 7)]);
    assert_eq!([map(7), map(10), map(15)], [(9, 13), (18, 25), (36, 50)]);
    assert!(matches!(teacher.layers(0, 8), Err(Error::MapSize { .. })));
}

#[test]
fn what_is_not_supported_is_refused_by_name_and_value() {
    for (field, value) in [
        ("addition_embed_type", json!("text_image")),
        ("class_embed_type", json!("timestep")),
        ("encoder_hid_dim", json!(768)),
        ("time_embedding_type", json!("fourier")),
        ("num_attention_heads", json!(8)),
        ("dual_cross_attention", json!(true)),
        ("mid_block_type", json!("UNetMidBlock2DSimpleCrossAttn")),
        ("resnet_time_scale_shift", json!("spatial")),
        ("act_fn", json!("tanh")),
        ("norm_num_groups", json!(33)),
        ("norm_num_groups", Value::Null),
        ("block_out_channels", json!([320, u64::MAX, 1280, 1280])),
        ("block_out_channels", json!([320])),
        ("layers_per_block", json!(1_000_000)),
        ("transformer_layers_per_block", json!(1e99)),
        ("attention_head_dim", json!([8, 8])),
        ("attention_head_dim", json!(321)),
        ("a_new_field", json!("x".repeat(10_000))),
    ] {
        let mut fields = sd15();
        fields[field] = value;
        let message = parse(fields).unwrap_err().to_string();
        assert!(message.contains(field) && message.len() < 400, "{field}: {message}");
    }
    let mut fields = sd15();
    fields["down_block_types"] = json!(["AttnDownBlock2D", "DownBlock2D", "DownBlock2D", "DownBlock2D"]);
    assert!(parse(fields).unwrap_err().to_string().contains("AttnDownBlock2D"));
    let class = Teacher::parse(br#"{"_class_name": "SD3Transformer2DModel"}"#).unwrap_err().to_string();
    assert_eq!(
        class,
        "_class_name is `SD3Transformer2DModel`; supported: UNet2DConditionModel, PixArtTransformer2DModel"
    );
}

#[test]
fn a_header_is_checked_against_the_configuration() {
    let teacher = parse(sd15()).unwrap();
    type Change = fn(&mut Vec<(String, Vec<usize>)>);
    let header = |change: Change, dtype| {
        let mut tensors = teacher.tensors();
        change(&mut tensors);
        let entries = tensors.iter().map(|(name, shape)| (name.as_str(), dtype, shape.as_slice()));
        let bytes = safetensors::serialize_header(entries, &Default::default()).unwrap();
        let data: usize = tensors.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
        safetensors::parse_header(&bytes[8..], (bytes.len() + 2 * data) as u64).unwrap()
    };
    use safetensors::Dtype::{F16, I16};
    let check = |header: safetensors::Header| teacher.check(|name| header.tensors.get(name));
    check(header(|_| {}, F16)).unwrap();
    let missing = check(header(|tensors| drop(tensors.remove(0)), F16));
    assert!(matches!(missing, Err(Error::MissingTensor { name }) if name == "conv_in.weight"));
    let shape = check(header(|tensors| tensors[1].1 = vec![321], F16));
    assert!(matches!(shape, Err(Error::WrongShape { found, .. }) if found == [321]));
    assert!(matches!(check(header(|_| {}, I16)), Err(Error::WrongDtype { .. })));
}
