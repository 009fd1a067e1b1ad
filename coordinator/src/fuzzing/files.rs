//! Files that workers and others put beside a job's objects.

use deltaconv_proto::fuzzing::{Input, in_memory, now, ok};
use deltaconv_proto::ids::JobId;
use deltaconv_proto::teacher::Teacher;
use deltaconv_proto::v1::{JobSpec, LayerPlan};
use deltaconv_proto::{keys, safetensors};

use crate::assemble::verify::block;
use crate::observe::history;
use crate::observe::report::{Part, Training};
use crate::{plan, term};

/// Of a file's tensors that are made of zeros for its header.
const MOST_ZEROS: u64 = 1 << 20;

/// The file whose header has this JSON, and tensors of zeros.
fn file_of(json: &[u8]) -> Vec<u8> {
    let len = json.len() as u64;
    let zeros = match safetensors::parse_header(json, safetensors::LENGTH_BYTES + len) {
        Err(safetensors::Error::WrongEnd { end, .. }) => end.min(MOST_ZEROS),
        _ => 0,
    };
    [&len.to_le_bytes(), json, &vec![0; zeros as usize]].concat()
}

/// A part of the evaluation, a block, and what it says of its training.
pub(super) fn of_evaluation(bytes: &[u8]) {
    for file in [bytes, &file_of(bytes)] {
        match ok(Part::parse(file)) {
            Some(Part::Noise(noise)) => {
                let n = noise.timestep.len();
                let by_sample = [&noise.energy, &noise.student_error, &noise.removed_error];
                assert!(by_sample.into_iter().chain(&noise.round_error).all(|errors| errors.len() == n));
                let m = noise.by_layer.timestep.len();
                let by_layer =
                    [&noise.by_layer.alone_error, &noise.by_layer.stream_energy, &noise.by_layer.stream_error];
                assert!(by_layer.into_iter().flatten().all(|of_layer| of_layer.len() == m));
            }
            Some(Part::Pictures(pictures)) => {
                let numbers = pictures.prompt.len() * 3 * pictures.height * pictures.width;
                let all = [&pictures.teacher, &pictures.student, &pictures.removed];
                assert!(all.into_iter().chain(&pictures.rounds).all(|of_model| of_model.len() == numbers));
            }
            None => {}
        }
        let scales = vec![1.0, 0.5];
        let layer = LayerPlan { channels: 4, kernel_size: 3, inter_ratio: 0.5, scales, ..LayerPlan::default() };
        ok(block::check(file, &layer));
        if let Ok((header, _)) = safetensors::parse(file)
            && let Some(training) = ok(Training::parse(&header.metadata))
        {
            let thinned = training.thinned(20);
            assert!(thinned.curve.len() <= 20 && thinned.curve.iter().all(|point| point.loss.is_finite()));
        }
    }
}

/// Events of a job that is over, a coordinator's term, and the spec that lies under an output.
pub(super) fn of_history(bytes: &[u8]) {
    let job = JobId::new("tiny-1").expect("an id");
    let term = keys::term(1);
    let events = keys::events(&job);
    let objects = in_memory(&[(&events, bytes), (&term, bytes), (keys::SPEC, bytes)]);
    if let Some(stored) = ok(now(history::read(&objects, &job))) {
        let merged = history::merged(stored.clone(), stored);
        assert!(merged.is_sorted_by(|a, b| a.sequence < b.sequence));
    }
    if let Some(found) = ok(now(term::newest(&objects))) {
        assert_eq!(found.map(|term| term.term), Some(1));
    }
    ok(now(plan::check_prefix(&objects, &JobSpec::default())));
}

/// A folder of ready data: the headers of its two files, and its prompts.
pub(super) fn of_data(bytes: &[u8]) {
    const TEACHER: &[u8] = br#"{"_class_name": "PixArtTransformer2DModel", "cross_attention_dim": 8}"#;
    let teacher = Teacher::parse(TEACHER).expect("a teacher");
    let mut input = Input(bytes);
    let (first, second) = (input.short() as usize, input.short() as usize);
    let [latents, embeddings] = [first, second].map(|len| file_of(input.piece(len)));
    let folder = in_memory(&[
        ("latents.safetensors", &latents),
        ("prompt_embeddings.safetensors", &embeddings),
        ("prompts.json", input.0),
    ]);
    ok(now(plan::read_data(&folder, &teacher)));
}
