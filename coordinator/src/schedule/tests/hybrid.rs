//! Layers that stay attention though the plan would replace them.

use super::*;

/// A job's tasks as workers were given them, when each distill task is answered with what `distilled` makes of its usual
/// output.
pub(super) fn worked(
    plan: v1::JobPlan,
    spec: v1::JobSpec,
    distilled: impl Fn(&v1::DistillTask, &mut v1::DistillOutput),
) -> (Coordinator, JobId, Vec<v1::TaskSpec>) {
    let mut c = Coordinator::new();
    let job = c.run(|state, now, effects| state.submit(spec, plan, now, effects)).expect("accepted").0;
    let worker = c.join();
    let (mut reports, mut given) = (Vec::new(), Vec::new());
    for _ in 0..100 {
        let response = c.sync(&worker, std::mem::take(&mut reports));
        c.carry_out();
        for start in response.start {
            let mut done = done(&start);
            let task = start.task.expect("a task");
            if let (Some(v1::task_spec::Kind::Distill(task)), Some(v1::done::Output::Distill(output))) =
                (&task.kind, &mut done.output)
            {
                distilled(task, output);
            }
            given.push(task);
            reports.push(report(&start.lease, Report::Done(done)));
        }
    }
    assert_eq!(c.job_state(&job), &JobState::Done);
    (c, job, given)
}

fn layer(task: &v1::DistillTask) -> &str {
    task.layer.as_ref().map_or("", |layer| &layer.name)
}

/// Of a layer's distill tasks: in which round, from which block on.
fn starts(given: &[v1::TaskSpec], name: &str) -> Vec<(u32, bool)> {
    let of_layer = |task: &v1::TaskSpec| match &task.kind {
        Some(v1::task_spec::Kind::Distill(task)) if layer(task) == name => Some((task.round, task.start.is_some())),
        _ => None,
    };
    given.iter().filter_map(of_layer).collect()
}

fn names(blocks: &[(v1::LayerPlan, v1::DistillOutput)]) -> Vec<&str> {
    blocks.iter().map(|(layer, _)| layer.name.as_str()).collect()
}

#[test]
fn a_layer_that_was_not_learned_stays_attention_and_the_job_says_so() {
    let (c, job, given) = worked(job_plan(), with_rounds(spec()), |task, output| {
        if layer(task) == "mid" {
            *output = v1::DistillOutput { unlearned: "it diverged".into(), ..v1::DistillOutput::default() };
        }
    });
    assert_eq!(starts(&given, "mid"), [(0, false), (1, false)]);
    assert_eq!(names(&c.state.blocks(&job, 1)), ["down"]);
    let found = c.state.staying(c.state.job(&job).expect("known"));
    let reason = "no block was learned, it diverged".to_owned();
    assert_eq!(found, [v1::StaysAttention { layer: "mid".into(), reason }]);
    let layers = c.state.status(&job, c.now).expect("known").layers;
    assert_eq!(layers.iter().map(|layer| layer.state.as_str()).collect::<Vec<_>>(), ["done", "kept"]);
}

#[test]
fn the_costliest_layers_stay_attention_from_the_second_round_on() {
    let mut spec = with_rounds(spec());
    spec.recipe = spec.recipe.map(|recipe| v1::Recipe { keep_costliest: Some(1), ..recipe });
    let (c, job, given) = worked(job_plan(), spec, |task, output| {
        assert_eq!(task.alone, task.round == 0);
        output.alone_error = task.alone.then_some(if layer(task) == "mid" { 0.02 } else { 0.01 });
    });
    assert_eq!(starts(&given, "mid"), [(0, false), (1, false)]);
    assert_eq!(names(&c.state.blocks(&job, 0)), ["down"]);
    assert_eq!(names(&c.state.blocks(&job, 1)), ["down"]);
    let found = c.state.staying(c.state.job(&job).expect("known"));
    assert!(found.len() == 1 && found[0].layer == "mid" && found[0].reason.contains("0.020000"), "{found:?}");
    for task in given {
        let kept = plan_in(&task).kept;
        match task.kind.expect("a kind") {
            // The student of the second round's capture has attention there.
            v1::task_spec::Kind::Capture(capture) if capture.round == 1 => assert_eq!(capture.blocks.len(), 1),
            v1::task_spec::Kind::Evaluate(_) => assert_eq!(kept, ["mid"]),
            _ => assert!(kept.is_empty()),
        }
    }
}

#[test]
fn of_equals_no_more_stay_than_are_to() {
    let mut spec = spec();
    spec.recipe = spec.recipe.map(|recipe| v1::Recipe { keep_costliest: Some(1), ..recipe });
    let (c, job, _) = worked(job_plan(), spec, |_, output| output.alone_error = Some(0.01));
    assert_eq!(c.state.staying(c.state.job(&job).expect("known")).len(), 1);
    assert_eq!(c.state.blocks(&job, 0).len(), 1);
}
