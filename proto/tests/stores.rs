//! What every store must do, asked of each that there is: a folder, s3s-fs, and those that `DELTACONV_TEST_STORES` names by
//! their URLs, with options from the environment as ever.

use deltaconv_proto::objects::testing::{Fault, Faulty, S3Server};
use deltaconv_proto::objects::{Error, Objects, Outgoing};
use object_store::{ObjectStoreExt, WriteMultipart};
use url::Url;

/// The least that S3 takes as a part of several.
const PART: usize = 5 << 20;

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|i| ((i * i) >> 3) as u8).collect()
}

/// Asks all of it below an empty prefix.
async fn check(objects: &Objects) {
    written_objects_are_read_whole_by_parts_and_by_size(objects).await;
    what_is_missing_is_told(objects).await;
    an_object_is_created_once(objects).await;
    an_upload_in_parts_is_seen_when_it_is_whole(objects).await;
    everything_is_listed(objects).await;
}

async fn written_objects_are_read_whole_by_parts_and_by_size(objects: &Objects) {
    let bytes = bytes(1000);
    let object = objects.put("a/ä b+c.bin", bytes.clone()).await.expect("put");
    assert_eq!(objects.get_verified(&object).await.expect("verified"), bytes);
    assert_eq!(objects.get(&object.key, 1000).await.expect("whole"), bytes);
    assert_eq!(objects.size(&object.key).await.expect("a size"), 1000);
    for (start, end) in [(0, 1), (0, 1000), (500, 501), (999, 1000), (7, 7)] {
        let part = objects.get_range(&object.key, start, end).await.expect("a part");
        assert_eq!(part, bytes[start as usize..end as usize], "{start}..{end}");
    }
    let replaced = objects.put(&object.key, &b"new"[..]).await.expect("put again");
    assert_eq!(&objects.get_verified(&replaced).await.expect("verified")[..], b"new");
    assert!(matches!(objects.get_verified(&object).await, Err(Error::Broken { .. })));
}

async fn what_is_missing_is_told(objects: &Objects) {
    assert!(matches!(objects.size("none").await, Err(Error::NotFound { .. })));
    assert!(matches!(objects.get("none", 1).await, Err(Error::NotFound { .. })));
    assert!(matches!(objects.get_range("none", 0, 1).await, Err(Error::NotFound { .. })));
    let below = objects.below("nothing").expect("a key");
    assert!(below.list(10).await.expect("an empty listing").is_empty());
}

async fn an_object_is_created_once(objects: &Objects) {
    objects.create("once", &b"first"[..]).await.expect("created");
    let again = objects.create("once", &b"second"[..]).await;
    assert!(matches!(again, Err(Error::AlreadyExists { .. })), "{again:?}");
    assert_eq!(&objects.get("once", 10).await.expect("whole")[..], b"first");
}

async fn an_upload_in_parts_is_seen_when_it_is_whole(objects: &Objects) {
    let (key, bytes) = ("large.bin", bytes(2 * PART + 1));
    let path = objects.path(key).expect("a key");
    let upload = objects.store().put_multipart(&path).await.expect("begins");
    let mut parts = WriteMultipart::new_with_chunk_size(upload, PART);
    parts.write(&bytes);
    assert!(matches!(objects.size(key).await, Err(Error::NotFound { .. })));
    parts.finish().await.expect("ends");
    assert_eq!(objects.size(key).await.expect("a size"), bytes.len() as u64);
    let (start, end) = (PART as u64 - 10, PART as u64 + 10);
    assert_eq!(objects.get_range(key, start, end).await.expect("a part"), bytes[PART - 10..PART + 10]);
    assert_eq!(objects.get(key, u64::MAX).await.expect("whole"), bytes);

    let mut streamed = objects.upload("streamed", &Outgoing::new(0)).expect("a key");
    streamed.write(&bytes).await.expect("taken");
    assert!(matches!(objects.size("streamed").await, Err(Error::NotFound { .. })));
    let streamed = streamed.finish().await.expect("ends");
    assert_eq!(objects.get_verified(&streamed).await.expect("verified"), bytes);

    let mut upload = objects.store().put_multipart(&objects.path("never").expect("a key")).await.expect("begins");
    upload.put_part(bytes[..PART].to_vec().into()).await.expect("a part");
    upload.abort().await.expect("ends");
    assert!(matches!(objects.size("never").await, Err(Error::NotFound { .. })));
}

async fn an_upload_that_nobody_ends_is_found_and_given_up(objects: &Objects) {
    let mut upload = objects.store().put_multipart(&objects.path("a/cut off").expect("a key")).await.expect("begins");
    upload.put_part(bytes(PART).into()).await.expect("a part");
    let open = objects.open_uploads().await.expect("a listing");
    assert_eq!(open.iter().map(|upload| &upload.key[..]).collect::<Vec<_>>(), ["a/cut off"]);
    assert!(objects.below("b").expect("a key").open_uploads().await.expect("a listing").is_empty());
    objects.give_up(&open[0]).await.expect("ends");
    assert!(objects.open_uploads().await.expect("a listing").is_empty());
}

async fn everything_is_listed(objects: &Objects) {
    let mut keys = objects.list(100).await.expect("a listing");
    keys.sort();
    assert_eq!(keys, ["a/ä b+c.bin", "large.bin", "once", "streamed"]);
    assert_eq!(objects.below("a").expect("a key").list(100).await.expect("a listing"), ["ä b+c.bin"]);
    assert_eq!(objects.list(2).await.expect("a listing").len(), 2);
}

#[tokio::test]
async fn a_folder() {
    let folder = tempfile::tempdir().expect("a folder");
    let url = Url::from_directory_path(folder.path()).expect("absolute");
    check(&Objects::open(url.as_str()).expect("opens")).await;
}

#[tokio::test]
async fn s3_in_this_process() {
    let server = S3Server::start();
    check(&server.objects("job/1")).await;
    assert!(server.folder().join("job/1/once").is_file());
}

#[tokio::test]
async fn s3_with_bodies_that_break() {
    let server = S3Server::start();
    let clean = server.objects("");
    let object = clean.put("a", bytes(100_000)).await.expect("put");
    let (objects, faulty) = Faulty::between(&clean, 5, 0.3, &[Fault::Reset, Fault::Short]);
    for start in 0..20 {
        let part = objects.get_range(&object.key, start, 100_000).await.expect("a part");
        assert_eq!(part, bytes(100_000)[start as usize..]);
    }
    assert!(faulty.fired(Fault::Reset) > 0 && faulty.fired(Fault::Short) > 0);
}

#[tokio::test]
async fn what_the_environment_names() {
    let Ok(urls) = std::env::var("DELTACONV_TEST_STORES") else {
        println!("skipped: DELTACONV_TEST_STORES names no stores; .ci/stores starts some");
        return;
    };
    for url in urls.split_whitespace() {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock");
        let objects = Objects::open(&format!("{url}/test-{}", now.as_nanos())).expect("opens");
        check(&objects).await;
        if url.starts_with("s3://") {
            an_upload_that_nobody_ends_is_found_and_given_up(&objects).await;
        }
        println!("{url} does all that a store must");
    }
}
