//! A server of S3 whose answers fail now and then, as the seed says: what processes meet that talk to it.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt};
use http::header::CONTENT_LENGTH;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::Service;
use s3s::service::S3Service;
use s3s::{Body, HttpError};

use super::schedule::{Drawn, Fault, Schedule};

/// Far longer than a request takes; a test that has thousands has time for it.
const LONGEST_DELAY: Duration = Duration::from_millis(50);
const SLOW_DOWN: &str = "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>";

/// What goes wrong with requests. Clones count together.
#[derive(Clone, Debug)]
pub struct Faults {
    schedule: Arc<Schedule>,
    settled: &'static str,
}

impl Faults {
    /// `rate` (0 to 1) of the requests that one of these `kinds` can happen to have it, and `most_flips` a bit flipped; a kind
    /// that is named twice happens twice as often. What lies in the folder `settled` of
    /// the bucket was written long ago and has no digests anywhere: listings aren't stale there, and no bits flip.
    pub fn new(seed: u64, rate: f64, kinds: &[Fault], most_flips: u64, settled: &'static str) -> Self {
        let schedule = Schedule::new(seed, rate, kinds, LONGEST_DELAY).with_most_flips(most_flips);
        Self { schedule: Arc::new(schedule), settled }
    }

    /// Nothing, until it is changed.
    pub fn none() -> Self {
        Self::new(0, 0.0, &[], 0, "")
    }

    /// From now on other kinds, at another rate.
    pub fn change(&self, rate: f64, kinds: &[Fault]) {
        self.schedule.change(rate, kinds);
    }

    /// The next `count` requests are refused, whatever the seed says of them.
    pub fn refuse(&self, count: u64) {
        self.schedule.refuse(count);
    }

    /// How often a fault happened.
    pub fn fired(&self, fault: Fault) -> u64 {
        self.schedule.fired(fault)
    }

    /// How many requests there were.
    pub fn requests(&self) -> u64 {
        self.schedule.operations()
    }

    /// What can happen to a request.
    fn possible<T>(&self, request: &Request<T>) -> Vec<Fault> {
        use Fault::*;
        let query = request.uri().query().unwrap_or_default();
        let is_settled = request.uri().path().contains(&format!("/{}/", self.settled))
            || query.contains(&format!("prefix={}%2F", self.settled));
        let of_body: &[Fault] = match *request.method() {
            Method::GET if query.contains("list-type=2") => &[Reset, Stale],
            Method::GET if query.is_empty() => &[Reset, Short, Flipped],
            _ => &[],
        };
        let happens = |fault: &Fault| !(is_settled && [Flipped, Stale].contains(fault));
        [Delay, Busy].into_iter().chain(of_body.iter().copied().filter(happens)).collect()
    }
}

/// A service behind which another one's answers fail.
#[derive(Clone)]
pub(super) struct FaultyService {
    inner: S3Service,
    faults: Faults,
}

impl FaultyService {
    pub(super) fn new(inner: S3Service, faults: &Faults) -> Self {
        Self { inner, faults: faults.clone() }
    }

    async fn answer(self, request: Request<Body>) -> Result<Response<Body>, HttpError> {
        let schedule = self.faults.schedule.clone();
        let Some(mut drawn) = schedule.draw(&self.faults.possible(&request)) else {
            return self.inner.call(request).await;
        };
        if drawn.is_done() && !request.method().is_safe() {
            self.inner.call(request).await?;
            schedule.fire(Fault::Busy);
            return Ok(refused());
        }
        match schedule.before(Some(&mut drawn)).await {
            Ok(()) => Ok(disturbed(drawn, self.inner.call(request).await?, schedule).await),
            Err(_) => Ok(refused()),
        }
    }
}

fn refused() -> Response<Body> {
    let mut refused = Response::new(Body::from(SLOW_DOWN.to_owned()));
    *refused.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    refused
}

impl Service<Request<Incoming>> for FaultyService {
    type Response = Response<Body>;
    type Error = HttpError;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        self.clone().answer(request.map(Body::from)).boxed()
    }
}

/// An answer whose body something happens to.
async fn disturbed(drawn: Drawn, answer: Response<Body>, schedule: Arc<Schedule>) -> Response<Body> {
    if !answer.status().is_success() {
        return answer;
    }
    let (mut head, body) = answer.into_parts();
    match drawn.fault {
        Fault::Delay | Fault::Busy => Response::from_parts(head, body),
        Fault::Stale => {
            // A body that can't be had is none.
            let listing = BodyExt::collect(body).await.map(|body| body.to_bytes()).unwrap_or_default();
            let listing = without_newest(&String::from_utf8_lossy(&listing), drawn, &schedule);
            head.headers.insert(CONTENT_LENGTH, HeaderValue::from(listing.len()));
            Response::from_parts(head, listing.into())
        }
        Fault::Reset | Fault::Short | Fault::Flipped => {
            let length = head.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
            let Some(length @ 1..) = length else { return Response::from_parts(head, body) };
            let (is_short, body) = (drawn.fault == Fault::Short, StreamExt::boxed(body));
            let (body, at) = drawn.disturb(body, length, schedule, Into::into);
            // The connection is closed where a body ends before its length, or with an error. Of a range the head doesn't
            // show it.
            if is_short && head.status == StatusCode::PARTIAL_CONTENT {
                head.headers.insert(CONTENT_LENGTH, HeaderValue::from(at));
            }
            let body = body.map_ok(Frame::data);
            Response::from_parts(head, Body::http_body_unsync(StreamBody::new(body)))
        }
    }
}

/// The listing without some of its newest objects.
fn without_newest(listing: &str, mut drawn: Drawn, schedule: &Schedule) -> String {
    const END: &str = "</Contents>";
    let Some((before, objects)) = listing.find("<Contents>").map(|at| listing.split_at(at)) else {
        return listing.to_owned();
    };
    let (objects, after) = objects.split_at(objects.rfind(END).map_or(0, |at| at + END.len()));
    let modified = |object: &&str| -> String { object.split("LastModified>").nth(1).unwrap_or_default().to_owned() };
    let mut objects: Vec<&str> = objects.split_inclusive(END).collect();
    objects.sort_by_key(modified);
    objects.truncate(drawn.listed(objects.len()));
    schedule.fire(Fault::Stale);
    format!("{before}{}{after}", objects.concat())
}
