//! Blocks that are trained together after the rounds.

use super::*;

/// Works until the job has been given its finetune task, which is returned with the worker.
fn until_finetune(spec: v1::JobSpec) -> (Coordinator, JobId, WorkerId, v1::Start) {
    let mut c = Coordinator::new();
    let (job, worker) = (c.submit_spec(spec), c.join());
    let mut reports = Vec::new();
    for _ in 0..40 {
        let response = c.sync(&worker, std::mem::take(&mut reports));
        c.carry_out();
        for start in response.start {
            if task(&start).is_some() {
                return (c, job, worker, start);
            }
            reports.push(report(&start.lease, Report::Done(done(&start))));
        }
    }
    panic!("no finetune task was given")
}

fn task(start: &v1::Start) -> Option<v1::FinetuneTask> {
    match start.task.clone()?.kind? {
        v1::task_spec::Kind::Finetune(task) => Some(task),
        _ => None,
    }
}

fn by_layer(blocks: &[v1::BlockRef]) -> BTreeMap<String, String> {
    blocks.iter().map(|of| (of.layer.clone(), of.object.clone().expect("a block").key)).collect()
}

/// Answers the finetune task and all that follow, and returns the evaluation's tasks.
fn finish(c: &mut Coordinator, worker: &WorkerId, first: v1::AttemptReport) -> Vec<v1::EvaluateTask> {
    let (mut reports, mut evaluated) = (vec![first], Vec::new());
    for _ in 0..20 {
        let response = c.sync(worker, std::mem::take(&mut reports));
        c.carry_out();
        for start in response.start {
            if let Some(v1::task_spec::Kind::Evaluate(task)) = start.task.clone().and_then(|task| task.kind) {
                evaluated.push(task);
            }
            reports.push(report(&start.lease, Report::Done(done(&start))));
        }
    }
    evaluated
}

#[test]
fn it_starts_from_the_last_rounds_blocks_and_gives_those_of_the_student_also_after_a_restart() {
    let (mut c, job, worker, start) = until_finetune(finetuning(with_rounds(spec())));
    let given = by_layer(&task(&start).expect("a finetune task").blocks);
    // The first layer is trained in the first round alone.
    assert!(given["down"].starts_with("rounds/0/blocks/down/") && given["mid"].starts_with("rounds/1/blocks/mid/"));

    // Somebody else goes on from where it was handed back.
    let lease = start.lease.clone().expect("a lease");
    let (id, attempt) = (TaskId::new(lease.task_id).expect("an id"), AttemptId::new(lease.attempt_id).expect("an id"));
    let checkpoint = v1::Checkpoint { object: Some(object(&keys::checkpoint(&id, &attempt, 4))), step: 4 };
    let progress = v1::Progress { checkpoint: Some(checkpoint.clone()), ..v1::Progress::default() };
    let other = c.join();
    let handed_back = c.sync(&worker, vec![report(&start.lease, Report::Released(progress))]);
    assert!(handed_back.acknowledged.len() == 1);
    c.crash();
    let again = c.sync(&other, Vec::new()).start.remove(0);
    assert_eq!(task(&again).expect("a finetune task").resume, Some(checkpoint));

    let evaluated = finish(&mut c, &other, report(&again.lease, Report::Done(done(&again))));
    c.crash();
    let blocks = c.state.blocks_of_student(&job);
    assert_eq!(blocks.len(), 2);
    for (layer, block) in blocks {
        assert!(block.key.starts_with(&format!("finetune/blocks/{}/a2-", layer.name)), "{}", block.key);
        let written = deltaconv_proto::keys::Written::parse(&block.key).expect("an attempt's key");
        assert_eq!(c.state.fates("file:///out", &[written]), [Fate::Stays]);
    }
    // The students before it are compared beside it: of the first round, and of the last.
    let rounds: Vec<u32> = evaluated[0].rounds.iter().map(|of| of.round).collect();
    assert_eq!(rounds, [0, 1]);
    assert_eq!(by_layer(&evaluated[0].rounds[1].blocks), given);
    assert_eq!(c.job_state(&job), &JobState::Done);
}

#[test]
fn blocks_that_it_makes_no_better_stay_as_they_were() {
    let (mut c, job, worker, start) = until_finetune(finetuning(spec()));
    let output = v1::FinetuneOutput { error_before: 0.01, error_after: 0.01, ..v1::FinetuneOutput::default() };
    let output = Some(v1::done::Output::Finetune(output));
    let nothing = v1::Done { output, ..v1::Done::default() };
    finish(&mut c, &worker, report(&start.lease, Report::Done(nothing)));
    let keys: Vec<String> = c.state.blocks_of_student(&job).into_iter().map(|(_, block)| block.key).collect();
    assert!(keys.len() == 2 && keys.iter().all(|key| key.starts_with("rounds/0/blocks/")), "{keys:?}");
    assert_eq!(c.job_state(&job), &JobState::Done);
}
