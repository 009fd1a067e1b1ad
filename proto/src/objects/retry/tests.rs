//! What is asked for again, seen from a server.

use object_store::ObjectStoreExt;
use object_store::aws::AmazonS3Builder;
use object_store::http::HttpBuilder;

use super::super::test_server::{Asked, Trouble, troubled};
use super::*;

/// As the real one, without the time.
fn quick() -> Policy {
    let pause = Duration::from_millis(1);
    Policy { first_pause: pause, longest_pause: pause, retries: 3, ..Policy::default() }
}

const S3: &str = "ETag: \"1\"\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n";

/// A hundred bytes in a store like S3, whose requests get into trouble.
fn s3(troubles: &[Trouble]) -> (Retried, Asked) {
    s3_with((0..100).collect(), troubles)
}

fn s3_with(object: Vec<u8>, troubles: &[Trouble]) -> (Retried, Asked) {
    let (endpoint, asked) = troubled(object, S3, troubles.to_vec());
    let builder = AmazonS3Builder::new().with_bucket_name("bucket").with_endpoint(endpoint).with_skip_signature(true);
    let builder = builder.with_client_options(patience(troubles)).with_retry(quick().requests());
    (Retried { inner: Arc::new(builder.build().expect("a store")), policy: quick() }, asked)
}

/// The same on a plain server, which gives no ETag.
fn web(troubles: &[Trouble]) -> (Retried, Asked) {
    let (url, asked) = troubled((0..100).collect(), "", troubles.to_vec());
    let builder = HttpBuilder::new().with_url(url).with_client_options(patience(troubles));
    let store = builder.with_retry(quick().requests()).build().expect("a store");
    (Retried { inner: Arc::new(store), policy: quick() }, asked)
}

/// As the real ones, but where a test waits for silence to be noticed.
fn patience(troubles: &[Trouble]) -> ClientOptions {
    let silent = troubles.iter().any(|trouble| matches!(trouble, Trouble::Silent | Trouble::SilentAfter(_)));
    let options = client().with_allow_http(true);
    if silent { options.with_read_timeout(Duration::from_millis(700)) } else { options }
}

fn ranges(asked: &Asked) -> Vec<String> {
    asked.lock().expect("no panic").iter().map(|(_, range)| range.clone().unwrap_or_default()).collect()
}

async fn read(store: &Retried) -> Result<Vec<u8>> {
    Ok(store.get_range(&Path::from("x"), 10..60).await?.to_vec())
}

#[tokio::test]
async fn what_can_pass_is_asked_for_again() {
    use Trouble::*;
    let busy = "<Error><Code>SlowDown</Code></Error>";
    for trouble in [Status(503, busy), Status(500, ""), Status(429, ""), Status(408, ""), Reset, Silent] {
        for (store, asked) in [s3(&[trouble, None]), web(&[trouble, None])] {
            assert_eq!(read(&store).await.expect("read"), (10..60).collect::<Vec<_>>(), "{trouble:?}");
            assert_eq!(ranges(&asked), ["10..60"; 2], "{trouble:?}");
        }
    }
}

#[tokio::test]
async fn a_body_goes_on_where_it_broke() {
    use Trouble::*;
    for trouble in [ResetAfter(20), SilentAfter(20), ClosedAfter(20), Shortened(20)] {
        for (store, asked) in [s3(&[trouble, None]), web(&[trouble, None])] {
            assert_eq!(read(&store).await.expect("read"), (10..60).collect::<Vec<_>>(), "{trouble:?}");
            assert_eq!(ranges(&asked), ["10..60", "30..60"], "{trouble:?}");
        }
    }
}

#[tokio::test]
async fn a_listing_is_begun_again() {
    use Trouble::*;
    let listing = "<ListBucketResult><Name>bucket</Name><KeyCount>1</KeyCount><IsTruncated>false</IsTruncated>\
                   <Contents><Key>a</Key><Size>9</Size><ETag>&quot;1&quot;</ETag>\
                   <LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents></ListBucketResult>";
    for trouble in [Status(503, ""), Reset, ResetAfter(20), ClosedAfter(20)] {
        let (store, asked) = s3_with(listing.into(), &[trouble, None]);
        let listed: Vec<_> = store.list(Option::None).try_collect().await.expect("a listing");
        assert_eq!((listed.len(), ranges(&asked).len()), (1, 2), "{trouble:?}");
    }
}

#[tokio::test]
async fn what_stays_so_is_asked_for_once() {
    for status in [400, 401, 403, 404, 409, 412, 416] {
        for (store, asked) in [s3(&[Trouble::Status(status, "no")]), web(&[Trouble::Status(status, "no")])] {
            read(&store).await.expect_err("refused");
            assert_eq!(ranges(&asked), ["10..60"], "{status}");
        }
    }
}

#[tokio::test]
async fn giving_up_says_how_often_it_was_tried_and_the_last_reason() {
    let (store, asked) = s3(&[Trouble::Status(503, "<Code>SlowDown</Code>")]);
    let error = read(&store).await.expect_err("refused").to_string();
    assert_eq!(ranges(&asked).len(), 4);
    assert!(error.contains("after 3 retries") && error.contains("503") && error.contains("SlowDown"), "{error}");

    let (store, asked) = web(&[Trouble::Shortened(0)]);
    let error = read(&store).await.expect_err("refused").to_string();
    assert_eq!(ranges(&asked).len(), 4);
    assert!(error.contains("4 attempts") && error.contains("50 bytes before its end"), "{error}");
}

#[tokio::test]
async fn a_body_of_another_state_of_the_object_is_not_appended() {
    let (url, _) = troubled((0..200).collect(), "", vec![Trouble::None]);
    let grown = HttpBuilder::new().with_url(url).with_client_options(patience(&[])).build();
    let mut body = Body {
        store: Arc::new(grown.expect("a store")),
        location: Path::from("x"),
        options: GetOptions::default(),
        meta: ObjectMeta {
            location: Path::from("x"),
            last_modified: Default::default(),
            size: 100,
            e_tag: None,
            version: None,
        },
        rest: 30..60,
        stream: stream::empty().boxed(),
        attempts: quick().attempts(),
    };
    let error = body.rest().await.map(drop).expect_err("refused").to_string();
    assert!(error.contains("changed while it was read"), "{error}");
}

/// An upload that the store knows no more.
#[derive(Debug)]
struct Ended;

#[async_trait]
impl MultipartUpload for Ended {
    fn put_part(&mut self, _: PutPayload) -> UploadPart {
        Box::pin(async { Ok(()) })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        Err(Error::NotFound { path: "x".to_owned(), source: "NoSuchUpload".into() })
    }

    async fn abort(&mut self) -> Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn an_upload_whose_end_was_not_heard_of_has_ended_if_all_of_it_is_there() {
    let store: Arc<dyn ObjectStore> = Arc::new(object_store::memory::InMemory::new());
    let location = Path::from("x");
    let mut ending = Ending { upload: Box::new(Ended), store: store.clone(), location: location.clone(), size: 0 };
    ending.put_part(PutPayload::from_static(b"hello")).await.expect("sent");
    for (there, has_ended) in [(None, false), (Some(&b"other bytes"[..]), false), (Some(b"hello"), true)] {
        if let Some(bytes) = there {
            store.put(&location, PutPayload::from_static(bytes)).await.expect("put");
        }
        assert_eq!(ending.complete().await.is_ok(), has_ended, "{there:?}");
    }
}
