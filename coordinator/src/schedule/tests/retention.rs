//! What is still needed, and what is removed when.

use deltaconv_proto::keys::Written;

use super::*;

fn fates(c: &Coordinator, keys: &[String]) -> Vec<Fate> {
    let written: Vec<Written> = keys.iter().map(|key| Written::parse(key).expect("an attempt's key")).collect();
    c.state.fates("file:///out", &written)
}

fn fate(c: &Coordinator, key: &str) -> Fate {
    fates(c, &[key.to_owned()]).remove(0)
}

/// The keys that an attempt's output lies at.
fn keys_of(start: &v1::Start) -> Vec<String> {
    let objects = match done(start).output.expect("an output") {
        v1::done::Output::Synthesise(output) => vec![output.latents],
        v1::done::Output::Capture(output) => output.shards.into_iter().map(|shard| shard.object).collect(),
        v1::done::Output::Distill(output) => vec![output.block],
        v1::done::Output::Finetune(output) => output.blocks.into_iter().map(|block| block.object).collect(),
        v1::done::Output::Evaluate(output) => vec![output.part],
    };
    objects.into_iter().map(|object| object.expect("an object").key).collect()
}

fn checkpoint_of(start: &v1::Start, step: u64) -> v1::Checkpoint {
    let lease = start.lease.clone().expect("a lease");
    let (task, attempt) =
        (TaskId::new(lease.task_id).expect("an id"), AttemptId::new(lease.attempt_id).expect("an id"));
    v1::Checkpoint { object: Some(object(&keys::checkpoint(&task, &attempt, step))), step }
}

/// Works until the job ends, and returns the keys of all outputs with their tasks' ids.
fn run_to_end(c: &mut Coordinator, job: &JobId, worker: &WorkerId) -> Vec<(String, TaskId)> {
    let (mut written, mut reports) = (Vec::new(), Vec::new());
    while c.state.job(job).expect("known").is_running() {
        let response = c.sync(worker, std::mem::take(&mut reports));
        for start in response.start {
            let id = TaskId::new(start.lease.clone().expect("a lease").task_id).expect("an id");
            written.extend(keys_of(&start).into_iter().map(|key| (key, id.clone())));
            reports.push(report(&start.lease, Report::Done(done(&start))));
        }
        // What comes of the end is left for the test to look at.
        let (last, others): (Vec<_>, Vec<_>) =
            std::mem::take(&mut c.commands).into_iter().partition(|command| matches!(command, Command::Reclaim(_)));
        c.commands = others;
        c.carry_out();
        c.commands.extend(last);
    }
    written
}

#[test]
fn keys_tell_the_tasks_that_they_were_written_for() {
    let mut c = Coordinator::new();
    let (job, worker) = (c.submit_spec(synthesising()), c.join());
    let written = run_to_end(&mut c, &job, &worker);
    assert!(written.len() >= c.state.job(&job).expect("known").slots.len());
    for (key, task) in written {
        assert_eq!(Written::parse(&key).expect("an attempt's key").task, task.local(), "{key}");
    }
}

#[test]
fn a_running_job_loses_nothing_but_what_attempts_left_that_will_not_come_back() {
    let mut c = Coordinator::new();
    let (_, slow, other) = (c.submit(), c.join(), c.join());
    let first = c.sync(&slow, Vec::new()).start.remove(0);
    assert!(fates(&c, &keys_of(&first)).iter().all(|fate| *fate == Fate::Stays), "it is being written");
    c.wait(TTL);
    assert!(fates(&c, &keys_of(&first)).iter().all(|fate| *fate == Fate::Orphaned), "its lease ended");

    let second = c.sync(&other, Vec::new()).start.remove(0);
    c.sync(&other, vec![report(&second.lease, Report::Done(done(&second)))]);
    c.crash();
    assert!(fates(&c, &keys_of(&second)).iter().all(|fate| *fate == Fate::Stays), "it is being checked");
    c.sync(&other, vec![report(&second.lease, Report::Done(done(&second)))]);
    c.carry_out();
    assert!(fates(&c, &keys_of(&second)).iter().all(|fate| *fate == Fate::Stays), "it is accepted");
    assert!(fates(&c, &keys_of(&first)).iter().all(|fate| *fate == Fate::Orphaned));
    // As are the attempts of a coordinator whose state was lost.
    assert_eq!(fate(&c, "rounds/0/blocks/down/a1-7-elsewhere.safetensors"), Fate::Orphaned);
    assert_eq!(fate(&c, "rounds/5/activations/down/00000000-00000002-a1-1-test.safetensors"), Fate::Orphaned);
}

#[test]
fn the_checkpoint_that_is_gone_on_from_stays_though_its_attempt_ended() {
    let mut c = Coordinator::new();
    let (_, worker) = (c.submit(), c.join());
    let first = first_distill(&mut c, &worker);
    let key = |start: &v1::Start, step| checkpoint_of(start, step).object.expect("an object").key;
    let at = |start: &v1::Start, step| v1::Progress {
        checkpoint: Some(checkpoint_of(start, step)),
        ..v1::Progress::default()
    };
    c.sync(&worker, vec![report(&first.lease, Report::Released(at(&first, 5)))]);
    assert_eq!(fate(&c, &key(&first, 5)), Fate::Stays);
    let second = c.sync(&worker, Vec::new()).start.remove(0);
    assert_eq!(second.lease.as_ref().map(|l| &l.task_id), first.lease.as_ref().map(|l| &l.task_id));
    assert_eq!(fate(&c, &key(&first, 5)), Fate::Stays);
    c.sync(&worker, vec![report(&second.lease, Report::Running(at(&second, 6)))]);
    assert_eq!((fate(&c, &key(&first, 5)), fate(&c, &key(&second, 6))), (Fate::Orphaned, Fate::Stays));
}

#[test]
fn a_checkpoint_goes_when_another_takes_its_place_and_no_other_tasks() {
    let mut c = Coordinator::new();
    let (job, worker) = (c.submit(), c.join());
    let start = first_distill(&mut c, &worker);
    let mut discarded = |checkpoint: &v1::Checkpoint| {
        let progress = v1::Progress { checkpoint: Some(checkpoint.clone()), ..v1::Progress::default() };
        c.sync(&worker, vec![report(&start.lease, Report::Running(progress))]);
        let commands = std::mem::take(&mut c.commands).into_iter();
        commands.filter(|command| matches!(command, Command::Discard { .. })).collect::<Vec<_>>()
    };
    let [fifth, sixth, eighth] = [5, 6, 8].map(|step| checkpoint_of(&start, step));
    let key = |checkpoint: &v1::Checkpoint| checkpoint.object.clone().expect("an object").key;
    assert_eq!(discarded(&fifth), []);
    assert_eq!(discarded(&fifth), [], "it is told again and again");
    assert_eq!(discarded(&sixth), [Command::Discard { job: job.clone(), key: key(&fifth) }]);
    assert_eq!(discarded(&fifth), [], "a late word of an earlier one");

    let others =
        v1::Checkpoint { object: Some(object("checkpoints/r0/distill/other/a1-1-test-00000007.safetensors")), step: 7 };
    assert_eq!(discarded(&others), [], "a worker can't have another task's take the place of its own");
    let earlier = v1::Checkpoint { step: 9, ..sixth.clone() };
    assert_eq!(discarded(&earlier), [], "nor one under another step's name");
    assert_eq!(discarded(&eighth), [Command::Discard { job, key: key(&sixth) }], "nor have another task's removed");
}

#[test]
fn of_a_job_that_is_over_the_results_stay() {
    let mut c = Coordinator::new();
    let (job, worker) = (c.submit_spec(synthesising()), c.join());
    for (key, _) in run_to_end(&mut c, &job, &worker) {
        let is_result = key.contains("/blocks/") || key.starts_with("evaluate/");
        assert_eq!(fate(&c, &key), if is_result { Fate::Stays } else { Fate::Spent }, "{key}");
    }
    let other_output = c.state.fates("file:///other", &[]);
    assert!(other_output.is_empty() && !c.state.is_written_to("file:///out"));
}

#[test]
fn what_a_failed_job_made_stays_while_the_same_job_runs_again() {
    let mut c = Coordinator::new();
    let (job, worker) = (c.submit(), c.join());
    let start = c.sync(&worker, Vec::new()).start.remove(0);
    c.sync(&worker, vec![report(&start.lease, Report::Done(done(&start)))]);
    c.carry_out();
    c.run(|state, now, effects| state.cancel(&job, now, effects)).expect("cancelled");
    assert!(fates(&c, &keys_of(&start)).iter().all(|fate| *fate == Fate::Spent));
    let again = c.submit();
    assert_ne!(again, job);
    assert!(fates(&c, &keys_of(&start)).iter().all(|fate| *fate == Fate::Stays));
    let new = c.sync(&worker, Vec::new()).start.remove(0);
    assert!(fates(&c, &keys_of(&new)).iter().all(|fate| *fate == Fate::Stays));
}

#[test]
fn a_job_that_keeps_its_results_alone_is_reclaimed_once_and_after_a_restart() {
    let mut c = Coordinator::new();
    let results = v1::JobSpec { retention: Some("results".into()), ..spec() };
    let (job, worker) = (c.submit_spec(results), c.join());
    run_to_end(&mut c, &job, &worker);
    assert_eq!(c.commands, [Command::Manifest(job.clone()), Command::Reclaim(job.clone())]);
    c.crash();
    assert_eq!(c.commands, [Command::Reclaim(job)], "the coordinator died before it was done");
    c.carry_out();
    c.crash();
    assert_eq!(c.commands, []);
}

#[test]
fn other_jobs_keep_what_they_recorded() {
    let mut c = Coordinator::new();
    let (job, worker) = (c.submit(), c.join());
    run_to_end(&mut c, &job, &worker);
    assert_eq!(c.commands, [Command::Manifest(job)], "everything is kept by default");

    let mut c = Coordinator::new();
    let job = c.submit_spec(v1::JobSpec { retention: Some("results".into()), ..spec() });
    c.run(|state, now, effects| state.cancel(&job, now, effects)).expect("cancelled");
    c.crash();
    assert_eq!(c.commands, [], "a cancelled job is left as it is");
}
