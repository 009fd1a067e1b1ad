//! What operators change, and how workers are divided.

use super::*;

fn named(name: &str, change: impl FnOnce(&mut v1::JobSpec)) -> v1::JobSpec {
    let mut spec = v1::JobSpec { name: name.into(), output_url: format!("file:///{name}"), ..spec() };
    change(&mut spec);
    spec
}

/// The jobs that so many workers are given tasks of, one after the other.
fn given(c: &mut Coordinator, workers: usize) -> Vec<String> {
    let given = |_| {
        let worker = c.join();
        let start = c.sync(&worker, Vec::new()).start.pop();
        start.map_or("nothing".into(), |start| c.state.tasks[&task_of(&start)].job.to_string())
    };
    (0..workers).map(given).collect()
}

#[test]
fn owners_and_their_jobs_get_as_many_workers_and_a_higher_priority_all_it_can_use() {
    let mut c = Coordinator::new();
    for (name, owner) in [("a", "ann"), ("b", "ann"), ("c", "bob")] {
        c.submit_spec(named(name, |spec| spec.owner = owner.into()));
    }
    assert_eq!(given(&mut c, 4), ["a-1", "c-3", "b-2", "c-3"]);
    c.submit_spec(named("urgent", |spec| (spec.priority, spec.max_workers) = (Some(5), 2)));
    assert_eq!(given(&mut c, 4), ["urgent-4", "urgent-4", "a-1", "c-3"]);
    c.crash();
    assert_eq!(given(&mut c, 3), ["b-2", "a-1", "b-2"], "what is at work counts after a restart, too");
    let waiting = c.state.explain("urgent-4/r0/capture/00000004-00000006", c.now).expect("known");
    assert_eq!(waiting.state, "limited", "{waiting}");
}

#[test]
fn a_worker_without_what_a_job_requires_is_given_another_ones_tasks() {
    let mut c = Coordinator::new();
    let requires = Some(v1::Requirements { memory_bytes: 24 << 30, precision: "bf16".into(), ..Default::default() });
    let job = c.submit_spec(named("large", |spec| spec.requires = requires));
    assert_eq!(given(&mut c, 1), ["nothing"]);
    let waiting = c.state.status(&job, c.now).expect("known").waiting_for;
    assert!(waiting.contains("24.0 GiB of memory"), "{waiting}");
    c.submit_spec(named("small", |_| ()));
    assert_eq!(given(&mut c, 1), ["small-2"]);
    let device = v1::Device { memory_bytes: 80 << 30, precisions: vec!["bf16".into()], ..v1::Device::default() };
    let join = v1::JoinRequest { device: Some(device), ..v1::JoinRequest::default() };
    let worker = c.run(|state, now, effects| state.join(join, now, effects)).expect("joins");
    assert!(task_of(&c.sync(&worker, Vec::new()).start[0]).as_str().starts_with("large-1/"));
}

#[test]
fn a_worker_is_given_only_what_its_version_knows() {
    let mut c = Coordinator::new();
    let job = c.submit();
    // From before every kind of task.
    let join = v1::JoinRequest { protocol: "0.0".into(), ..v1::JoinRequest::default() };
    let old = c.run(|state, now, effects| state.join(join, now, effects)).expect("joins");
    assert_eq!(c.sync(&old, Vec::new()).start, []);
    let waiting = c.state.status(&job, c.now).expect("known").waiting_for;
    assert!(waiting.contains("none of 1 workers knows all") && waiting.contains("upgrade them"), "{waiting}");
    c.crash();
    assert_eq!(c.sync(&old, Vec::new()).start, [], "after a restart, too");

    let worker = c.join();
    let start = c.sync(&worker, Vec::new()).start.remove(0);
    // Where it fails, and nobody else knows it, it is tried there again.
    c.sync(&worker, vec![report(&start.lease, Report::Failed(v1::Failure::default()))]);
    assert_eq!(task_of(&c.sync(&worker, Vec::new()).start[0]), task_of(&start));
}

#[test]
fn a_paused_job_is_handed_back_without_blame_and_goes_on_when_it_is_resumed() {
    let mut c = Coordinator::new();
    let (job, worker) = (c.submit(), c.join());
    let start = c.sync(&worker, Vec::new()).start.remove(0);
    c.commands.clear();
    c.run(|state, _, effects| state.pause(&job, effects)).expect("paused");
    assert_eq!(c.commands, [Command::Wake(worker.clone())]);
    c.crash();
    let answer = c.sync(&worker, vec![report(&start.lease, Report::Running(v1::Progress::default()))]);
    assert_eq!(answer.hand_back, [start.lease.clone().expect("a lease")]);
    let answer = c.sync(&worker, vec![report(&start.lease, Report::Released(v1::Progress::default()))]);
    assert_eq!((answer.acknowledged.len(), given(&mut c, 1)), (1, vec!["nothing".to_owned()]));
    let waiting = c.state.status(&job, c.now).expect("known").waiting_for;
    assert!(waiting.contains("deltaconv resume tiny-1"), "{waiting}");
    c.commands.clear();
    c.sync(&worker, Vec::new());
    c.run(|state, now, effects| state.resume(&job, now, effects)).expect("resumed");
    assert!(c.commands.contains(&Command::Wake(worker.clone())));
    while c.answer(&worker, |start| Report::Done(done(start))).is_some() {}
    c.carry_out();
    assert_eq!(c.job_state(&job), &JobState::Done);
    let refused = c.run(|state, _, effects| state.pause(&job, effects));
    assert!(matches!(refused, Err(Error::Ended { .. })), "{refused:?}");
}

#[test]
fn what_could_be_begun_now_is_counted() {
    let mut c = Coordinator::new();
    let (job, worker) = (c.submit_spec(v1::JobSpec { max_workers: 2, ..spec() }), c.join());
    let ready = |c: &Coordinator| c.state.census(c.now).ready;
    // Of three captures, as many as may be worked on; what comes after them waits for all three.
    assert_eq!(ready(&c), 2);
    c.sync(&worker, Vec::new());
    assert_eq!(ready(&c), 1);
    c.run(|state, _, effects| state.pause(&job, effects)).expect("paused");
    assert_eq!(ready(&c), 0);
}

#[test]
fn a_drained_worker_ends_what_it_does_and_takes_nothing_new() {
    let mut c = Coordinator::new();
    c.submit();
    let worker = c.join();
    let start = c.sync(&worker, Vec::new()).start.remove(0);
    c.run(|state, _, effects| state.drain(worker.as_str(), effects)).expect("drained");
    c.crash();
    let answer = c.sync(&worker, vec![report(&start.lease, Report::Done(done(&start)))]);
    assert!(answer.cancel.is_empty() && answer.hand_back.is_empty());
    c.carry_out();
    assert!(c.state.tasks[&task_of(&start)].is_committed());
    assert_eq!(c.answer(&worker, |start| Report::Done(done(start))), None);
    c.run(|state, now, effects| state.give_again(worker.as_str(), now, effects)).expect("returned");
    assert!(c.answer(&worker, |start| Report::Done(done(start))).is_some());
    let unknown = c.run(|state, _, effects| state.drain("nobody", effects));
    assert!(matches!(unknown, Err(Error::UnknownWorker(name)) if name == "nobody"));
}

#[test]
fn a_change_is_made_once_for_a_request_also_after_a_restart() {
    let mut c = Coordinator::new();
    let job = c.submit();
    let once = |c: &mut Coordinator, request: &str, paused: bool| {
        c.run(|state, now, effects| {
            state.once(request, effects, |state, effects| match paused {
                true => state.pause(&job, effects),
                false => state.resume(&job, now, effects),
            })
        })
    };
    once(&mut c, "r1", true).expect("paused");
    once(&mut c, "r2", false).expect("resumed");
    c.crash();
    once(&mut c, "r1", true).expect("known");
    assert!(!c.state.job(&job).expect("known").paused, "the answer to the first was lost, and it is asked again");
    once(&mut c, "r3", true).expect("paused");
    assert!(c.state.job(&job).expect("known").paused);
    // One that fails may be asked for again.
    let unknown = JobId::new("unknown").expect("an id");
    for _ in 0..2 {
        let failed =
            c.run(|state, _, effects| state.once("r4", effects, |state, effects| state.pause(&unknown, effects)));
        assert!(matches!(failed, Err(Error::UnknownJob(_))));
    }
}

#[test]
fn a_job_that_nobody_can_work_on_says_so_within_half_a_minute_and_once() {
    let mut c = Coordinator::new();
    let job = c.submit();
    let mut said = Vec::new();
    for _ in 0..120 {
        c.wait(Duration::from_secs(1));
        let second = c.now.monotonic;
        said.extend(std::mem::take(&mut c.commands).into_iter().filter_map(|command| match command {
            Command::Say { job, waiting } => Some((second, job, waiting)),
            _ => None,
        }));
    }
    let [(after, of, waiting)] = &said[..] else { panic!("{said:?}") };
    assert!(*of == job && *after <= Duration::from_secs(30), "{said:?}");
    assert!(waiting.contains("no worker is here"), "{waiting}");
}

#[test]
fn a_coordinator_that_stood_still_ends_no_lease_before_its_worker_can_be_heard() {
    let mut c = Coordinator::new();
    c.submit();
    let worker = c.join();
    let start = c.sync(&worker, Vec::new()).start.remove(0);
    c.now.monotonic += 5 * TTL;
    c.run(|state, now, _| state.stood_still(now));
    c.wait(TTL / 2);
    let answer = c.sync(&worker, vec![report(&start.lease, Report::Running(v1::Progress::default()))]);
    assert!(answer.cancel.is_empty(), "{answer:?}");
    c.wait(2 * TTL);
    let answer = c.sync(&worker, vec![report(&start.lease, Report::Running(v1::Progress::default()))]);
    assert_eq!(answer.cancel.len(), 1, "afterwards it ends as ever");
}

#[test]
fn many_workers_are_told_to_call_less_often_and_never_so_seldom_that_leases_end() {
    let mut c = Coordinator::new();
    c.submit();
    let worker = c.join();
    let start = c.sync(&worker, Vec::new()).start.remove(0);
    let pace = |c: &mut Coordinator| {
        c.sync(&worker, vec![report(&start.lease, Report::Running(v1::Progress::default()))]).next_call_after_ms
    };
    assert_eq!(pace(&mut c), 0);
    let join = |state: &mut State, now, effects: &mut _| drop(state.join(v1::JoinRequest::default(), now, effects));
    c.run(|state, now, effects| (0..2000).for_each(|_| join(state, now, effects)));
    assert_eq!(pace(&mut c), 500, "2001 workers at 2000 calls a second, each of which lasts half a second");
    c.run(|state, now, effects| (0..20_000).for_each(|_| join(state, now, effects)));
    assert_eq!(u128::from(pace(&mut c)), (TTL / 3).as_millis());
}

#[test]
fn demand_is_what_workers_could_begin_by_what_jobs_require_of_them() {
    let mut c = Coordinator::new();
    // Three captures, two layers, noise and pictures.
    let any = c.submit_spec(named("any", |_| ()));
    let requires = Some(v1::Requirements { device: v1::Device::CUDA.into(), ..v1::Requirements::default() });
    let of_gpus = named("of-gpus", |spec| (spec.requires, spec.max_workers) = (requires.clone(), 2));
    c.submit_spec(of_gpus);
    let counted = |c: &Coordinator| {
        let demands = c.state.demand().demands.into_iter();
        demands.map(|of| (of.requires.is_some(), of.ready, of.at_work, of.left)).collect::<Vec<_>>()
    };
    assert_eq!(counted(&c), [(false, 3, 0, 7), (true, 2, 0, 2)]);
    assert_eq!(c.state.demand().demands[1].requires, requires);

    // What requires nothing is any worker's, and so are its parts that come later.
    let worker = c.join();
    assert_eq!(task_of(&c.sync(&worker, Vec::new()).start[0]).job(), any.as_str());
    let device = v1::Device { kind: v1::Device::CUDA.into(), ..v1::Device::default() };
    let join = v1::JoinRequest { device: Some(device), node: "gpu".into(), ..v1::JoinRequest::default() };
    let with_gpu = c.run(|state, now, effects| state.join(join, now, effects)).expect("joins");
    c.sync(&with_gpu, Vec::new());
    assert_eq!(counted(&c), [(false, 2, 1, 7), (true, 1, 1, 2)]);

    c.run(|state, _, effects| state.pause(&any, effects)).expect("paused");
    assert_eq!(counted(&c)[0], (false, 0, 1, 0));
    c.run(|state, now, effects| state.resume(&any, now, effects)).expect("resumed");
    c.state.turn_read_only("a full disk".into());
    assert_eq!(counted(&c)[0], (false, 0, 1, 7));

    let mut c = Coordinator::new();
    let job = c.submit();
    let worker = c.join_on("broken");
    c.run(|state, now, effects| state.device_failed("broken", "fell off the bus", now, effects));
    assert_eq!(c.state.demand().machines_out, ["broken"]);
    c.run(|state, now, effects| state.give_again(worker.as_str(), now, effects)).expect("returned");
    assert!(c.state.demand().machines_out.is_empty());
    c.run(|state, now, effects| state.cancel(&job, now, effects)).expect("cancelled");
    assert_eq!(c.state.demand(), v1::DemandResponse::default());
}
