use std::collections::BTreeMap;

use deltaconv_proto::objects::Objects;
use deltaconv_proto::safetensors::{Dtype, serialize_header};
use deltaconv_proto::v1::{DistillOutput, FinetuneOutput, JobPlan, LayerPlan, ObjectRef, StaysAttention};
use deltaconv_proto::{block, keys};

use super::figures::Measured;
use super::{ByLayer, Noise, ReportInput, StageFigures, write};
use crate::assemble::{LayerBlock, assemble};
use crate::plan::fixture::Job;

const PROMPTS: usize = 8;
const SIDE: usize = 32;

/// A block with a curve that falls as those of real training do.
async fn block_of(objects: &Objects, layer: &LayerPlan) -> (LayerPlan, DistillOutput) {
    let i = f64::from(layer.index);
    let error = |step: f64| 0.008 * (1.0 + i) + 0.9 * (-step / (60.0 + 15.0 * i)).exp();
    let points = (1..=120).map(|n| {
        let step = f64::from(n) * 5.0;
        let noise = 1.0 + 0.25 * (step * 12.9898 + i).sin();
        let held_out = if n % 8 == 0 { format!("{}", error(step) * 1.05) } else { "null".to_owned() };
        format!("[{step}, {}, {held_out}]", error(step) * noise)
    });
    let curve = format!("[{}]", points.collect::<Vec<_>>().join(", "));
    let relative_error = error(600.0);
    let solved = format!("[{}, {relative_error}]", 2.0 * relative_error);
    let metadata = [("relative_error", relative_error.to_string()), ("curve", curve), ("solved", solved)];
    let metadata = metadata.map(|(name, value)| (name.to_owned(), value)).into();
    let tensors = block::tensors(layer);
    let entries = tensors.iter().map(|(name, shape)| (name.as_str(), Dtype::F32, shape.as_slice()));
    let mut bytes = serialize_header(entries, &metadata).expect("a header");
    bytes.resize(bytes.len() + 4 * layer.parameters as usize, 0);
    let key = format!("rounds/0/blocks/{}/a1.safetensors", layer.name);
    let object = objects.put(&key, bytes).await.expect("writes");
    (layer.clone(), DistillOutput { block: Some(object), relative_error, ..DistillOutput::default() })
}

/// Of the first two samples, layer by layer: replaced alone a layer costs twice as much as the one before, and the stream
/// drifts by a tenth more.
async fn noise(objects: &Objects, key: &str, layers: usize, rows: &[(i64, f64, f64, f64)]) -> ObjectRef {
    let shape = [rows.len()];
    let names = ["energy", "student_error", "removed_error"].map(|name| (name, Dtype::F64, &shape[..]));
    let timestep = [("timestep", Dtype::I64, &shape[..])];
    let by_round = [2, rows.len()];
    let rounds = [("round_error", Dtype::F64, &by_round[..])];
    let (some, table) = ([2], [layers, 2]);
    let by_layer = [
        ("layer_timestep", Dtype::I64, &some[..]),
        ("layer_energy", Dtype::F64, &some[..]),
        ("alone_error", Dtype::F64, &table[..]),
        ("stream_energy", Dtype::F64, &table[..]),
        ("stream_error", Dtype::F64, &table[..]),
    ];
    let seconds = ["teacher_seconds", "student_seconds"].map(|name| (name, Dtype::F64, &some[..]));
    let tensors = timestep.into_iter().chain(names).chain(rounds).chain(by_layer).chain(seconds);
    let mut bytes = serialize_header(tensors, &BTreeMap::new()).expect("a header");
    bytes.extend(rows.iter().flat_map(|row| row.0.to_le_bytes()));
    // The round before the last was worse by half, and what it started from three times as bad.
    for column in 0..5 {
        bytes.extend(rows.iter().flat_map(|row| [row.1, row.2, row.3, 3.0 * row.2, 1.5 * row.2][column].to_le_bytes()));
    }
    bytes.extend(rows[..2].iter().flat_map(|row| row.0.to_le_bytes()));
    bytes.extend(rows[..2].iter().flat_map(|row| row.1.to_le_bytes()));
    let mut extend = |of: &dyn Fn(usize) -> f64| bytes.extend((0..2 * layers).flat_map(|i| of(i / 2).to_le_bytes()));
    extend(&|layer| 0.125 * f64::from(1 << layer));
    extend(&|_| 50.0);
    extend(&|layer| 5.0 * layer as f64);
    // The first batch warmed things up.
    bytes.extend([1.0 + rows.len() as f64, 0.2, 9.0, 0.1].iter().flat_map(|seconds: &f64| seconds.to_le_bytes()));
    objects.put(key, bytes).await.expect("writes")
}

/// Coloured discs; the student's are off by `error` everywhere, those without attention by five times that, what the
/// first round started from by four times that, and those of the round before the last by twice that.
async fn pictures(objects: &Objects, key: &str, prompts: &[i64], error: f32) -> ObjectRef {
    let shape = [prompts.len(), 3, SIDE, SIDE];
    let names = ["teacher", "student", "removed"].map(|name| (name, Dtype::F32, &shape[..]));
    let rows = [prompts.len()];
    let prompt = [("prompt", Dtype::I64, &rows[..])];
    let by_round = [2, prompts.len(), 3, SIDE, SIDE];
    let tensors = prompt.into_iter().chain(names).chain([("rounds", Dtype::F32, &by_round[..])]);
    let mut bytes = serialize_header(tensors, &BTreeMap::new()).expect("a header");
    bytes.extend(prompts.iter().flat_map(|prompt| prompt.to_le_bytes()));
    let disc = |prompt: i64, channel: usize, y: usize, x: usize| {
        let (dy, dx) = (y as f32 - 15.5, x as f32 - 13.0 - (prompt % 6) as f32);
        let inside = dy * dy + dx * dx < 90.0;
        let colour = [(0.45, -0.6, -0.6), (-0.6, 0.3, -0.5), (-0.6, -0.5, 0.45)][prompt as usize / 6 % 3];
        if inside { [colour.0, colour.1, colour.2][channel] } else { 0.1 - y as f32 * 0.02 }
    };
    for off in [0.0, error, 5.0 * error, 4.0 * error, 2.0 * error] {
        for &prompt in prompts {
            let all = (0..3).flat_map(|c| (0..SIDE).flat_map(move |y| (0..SIDE).map(move |x| (c, y, x))));
            bytes.extend(all.flat_map(|(c, y, x)| (disc(prompt, c, y, x) + off).to_le_bytes()));
        }
    }
    objects.put(key, bytes).await.expect("writes")
}

async fn written(job: &Job) -> (JobPlan, deltaconv_proto::v1::Figures) {
    let plan = crate::plan::plan(&job.spec).await.expect("plans");
    let objects = Objects::open(&job.spec.output_url).expect("opens");
    let mut blocks = Vec::new();
    for layer in &plan.layers {
        blocks.push(block_of(&objects, layer).await);
    }
    let to_assemble: Vec<LayerBlock> =
        blocks.iter().map(|(layer, output)| (layer.clone(), output.block.clone().expect("a block"))).collect();
    let output = assemble(&job.spec, &plan, &to_assemble).await.expect("assembles").objects;

    let mut evaluation = vec![
        noise(
            &objects,
            "e/0",
            blocks.len(),
            &[(0, 100.0, 1.0, 10.0), (249, 100.0, 3.0, 10.0), (250, 200.0, 2.0, 20.0)],
        )
        .await,
        noise(&objects, "e/1", blocks.len(), &[(500, 50.0, 0.5, 5.0), (999, 50.0, 0.25, 5.0)]).await,
    ];
    for pair in 0..PROMPTS / 2 {
        let prompts = [5 * pair as i64, 5 * pair as i64 + 19];
        evaluation.push(pictures(&objects, &format!("e/p{pair}"), &prompts, 0.1).await);
    }
    let stage = |stage: &str, seconds, samples, tasks| StageFigures {
        stage: stage.to_owned(),
        round: 0,
        seconds,
        busy_seconds: seconds * 1.9,
        gpu_seconds: seconds * 0.9,
        written_bytes: 1_234_567,
        samples,
        tasks,
    };
    let stages = [
        stage("capture", 36.4, 120, 5),
        stage("distill", 96.0, 67_200, 7),
        stage("assemble", 0.4, 0, 1),
        stage("evaluate", 31.0, 72, 6),
    ];
    let staying =
        [StaysAttention { layer: "up.7".to_owned(), reason: "no block was learned, it <diverged>".to_owned() }];
    let input = ReportInput {
        spec: &job.spec,
        plan: &plan,
        output: &output,
        blocks: &blocks,
        evaluation: &evaluation,
        stages: &stages,
        staying: &staying,
        finetuned: Some(&FinetuneOutput {
            error_before: 0.02,
            error_after: 0.015,
            steps: 500,
            ..FinetuneOutput::default()
        }),
    };
    (plan.clone(), write(input).await.expect("a report"))
}

#[tokio::test]
async fn figures_follow_their_definitions() {
    let mut job = Job::new();
    job.recipe().start = Some("ridge".to_owned());
    let (plan, figures) = written(&job).await;
    let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-4 * b.abs(), "{a} instead of {b}");
    near(figures.epsilon_relative_mse, 6.75 / 500.0);
    near(figures.removed_epsilon_relative_mse, 0.1);
    // Off by 0.1 everywhere, where no pixel is clamped: 10·log10(4 / 0.01).
    near(figures.psnr_db, 26.0206);
    near(figures.removed_psnr_db, 12.0412);

    let file = |name: &str| std::fs::read(job.path("job").join(keys::REPORT).join(name)).expect("written");
    let report: serde_json::Value = serde_json::from_slice(&file("report.json")).expect("JSON");
    let quarters = report["epsilon_relative_mse_by_timestep_quarter"].as_array().expect("four numbers");
    for (quarter, expected) in quarters.iter().zip([4.0 / 200.0, 0.01, 0.01, 0.005]) {
        near(quarter.as_f64().expect("a number"), expected);
    }
    near(report["rounds"][0]["epsilon_relative_mse"].as_f64().expect("a number"), 1.5 * 6.75 / 500.0);
    near(report["ridge_only"]["epsilon_relative_mse"].as_f64().expect("a number"), 3.0 * 6.75 / 500.0);
    near(report["ridge_only"]["psnr_db"].as_f64().expect("a number"), 26.0206 - 20.0 * 4f64.log10());
    assert_eq!(report["rounds"].as_array().map(Vec::len), Some(1));
    let errors = |layer: &serde_json::Value| {
        [&layer["relative_error"], &layer["solved"]["before"]].map(|error| error.as_f64().expect("a number"))
    };
    let [after, before] = errors(&report["layers"][1]);
    near(before, 2.0 * after);
    near(report["rounds"][0]["psnr_db"].as_f64().expect("a number"), 20.0);
    near(report["rounds"][0]["epsilon_relative_mse_by_timestep_quarter"][3].as_f64().expect("a number"), 0.0075);
    // Of samples whose energy is 100, 100, 50 and 50, the first two of the first quarter.
    let alone = |layer: usize| &report["layers"][layer]["alone"];
    near(alone(2)["epsilon_relative_mse"].as_f64().expect("a number"), 4.0 * 0.5 / 300.0);
    near(alone(2)["epsilon_relative_mse_by_timestep_quarter"][0].as_f64().expect("a number"), 2.0 * 0.5 / 200.0);
    assert!(alone(2)["epsilon_relative_mse_by_timestep_quarter"][1].is_null());
    assert_eq!(report["layers"][0]["residual_drift"], 0.0);
    near(report["layers"][3]["residual_drift"].as_f64().expect("a number"), 0.3);
    assert_eq!(report["layer_samples"], 4);
    near(report["latency"]["teacher_seconds"].as_f64().expect("a number"), (0.2 + 3.0) / 2.0);
    near(report["latency"]["student_seconds"].as_f64().expect("a number"), (0.1 + 9.0) / 2.0);
    assert_eq!(report["latency"]["batches"], 4);
    let operations = |of: &serde_json::Value, side: &str| of["multiply_accumulates"][side].as_u64().expect("a number");
    for side in ["attention", "blocks"] {
        let sum: u64 = report["layers"].as_array().expect("layers").iter().map(|layer| operations(layer, side)).sum();
        assert!(sum > 0 && sum == operations(&report, side));
    }
    assert!(operations(&report, "blocks") < operations(&report, "attention"));
    near(report["attention_removed"]["psnr_median_db"].as_f64().expect("a number"), 12.0412);
    assert_eq!(report["layers"].as_array().map(Vec::len), Some(plan.layers.len()));
    assert_eq!(report["layers"][2]["name"], plan.layers[2].name);
    assert_eq!(report["layers"][2]["kernel_size"], 5);
    let curve = report["layers"][1]["curve"].as_array().expect("a curve");
    assert!((30..=64).contains(&curve.len()) && curve[curve.len() - 1][0] == 600, "{} points", curve.len());
    near(curve[curve.len() - 1][2].as_f64().expect("a number"), 1.05 * after);
    assert_eq!(report["samples"]["prompts"][0], "a red circle");
    assert_eq!(report["samples"]["prompts"].as_array().map(Vec::len), Some(PROMPTS));
    assert_eq!(report["digests"]["blocks"], figures.blocks_digest);
    assert_eq!(report["stages"][1]["samples"], 67_200);
    assert_eq!(report["format_version"], 1);

    let decoder = png::Decoder::new(std::io::Cursor::new(file("samples.png")));
    let reader = decoder.read_info().expect("a picture");
    assert!(reader.info().width as usize >= PROMPTS * 4 * SIDE && reader.info().height as usize >= 2 * 4 * SIDE);

    let page = String::from_utf8(file("report.html")).expect("text");
    for outside in ["src=\"http", "href=", "<script", "@import"] {
        assert!(!page.contains(outside), "the page isn't self-contained: {outside}");
    }
    assert_eq!(page.matches("<svg").count(), 1);
    assert!(page.contains("<th class=\"number\">ridge only</th>") && page.contains("(before solving "));
    assert_eq!(report["stay_attention"][0]["layer"], "up.7");
    assert_eq!(figures.stay_attention[0].reason, "no block was learned, it <diverged>");
    assert!(page.contains("up.7 stays attention:</b> no block was learned, it &lt;diverged&gt;"));
}

#[tokio::test]
async fn text_from_outside_cant_become_markup() {
    let job = Job::new();
    job.replace("prompts.json", "a red circle", "<script>alert(1)</script>");
    written(&job).await;
    let page = std::fs::read_to_string(job.path("job/report/report.html")).expect("written");
    assert!(!page.contains("<script>") && page.contains("&lt;script&gt;alert(1)"));
}

#[test]
fn a_part_of_other_layers_is_refused() {
    let by_layer = |layers: usize| ByLayer {
        timestep: vec![1],
        energy: vec![1.0],
        alone_error: vec![vec![1.0]; layers],
        stream_energy: vec![vec![1.0]; layers],
        stream_error: vec![vec![1.0]; layers],
    };
    let noise = |layers| Noise {
        timestep: Vec::new(),
        energy: Vec::new(),
        student_error: Vec::new(),
        removed_error: Vec::new(),
        round_error: Vec::new(),
        by_layer: by_layer(layers),
        teacher_seconds: Vec::new(),
        student_seconds: Vec::new(),
    };
    let mut measured = Measured::new(1000, 3);
    assert!(measured.add_noise(&noise(3)).is_ok());
    for layers in [0, 2, 4] {
        let refused = measured.add_noise(&noise(layers)).expect_err("of other layers");
        assert!(refused.to_string().contains(&format!("has {layers} rows")), "{refused}");
    }
}
