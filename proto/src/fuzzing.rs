//! Doors to the parsers of outside bytes, for fuzzing: what must hold whatever the bytes are. A function panics where it doesn't.
//! `cli/fuzz` calls them with mutated bytes, and the tests of each crate with those that it has kept.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;

use futures::FutureExt;
use object_store::memory::InMemory;

use crate::description::Description;
use crate::ids::{AttemptId, JobId, TaskId, WorkerId};
use crate::objects::{self, Objects};
use crate::prompts::Prompts;
use crate::safetensors::{self, Dtype, Header, parse_header, serialize_header};
use crate::shard::{self, Contents, Layout};
use crate::teacher::{ClipConfig, Scheduler, T5Config, Teacher, VaeConfig};
use crate::tls::{self, Bundle, Certificate, Fingerprint, Identity, Invitation, Token};
use crate::v1::{LayerPlan, Map};
use crate::{block, buckets, code, digest, images, keys, log, pipeline, weights};

/// Bytes that an error's text may have: it travels in a header of at most 16 KiB, where each byte may become three.
pub const LONGEST_ERROR: usize = 4096;

/// Panics where what must hold of some bytes doesn't.
pub type Target = fn(&[u8]);

/// The parsers of this crate, by the names of their corpora.
pub const TARGETS: [(&str, Target); 7] = [
    ("safetensors", of_safetensors),
    ("config", of_config),
    ("shard", of_shard),
    ("prompts", of_prompts),
    ("dataset", of_dataset),
    ("names", of_names),
    ("access", of_access),
];

/// Calls each function with every file of its corpus.
///
/// # Panics
/// Where one does, and where a corpus is not there.
pub fn replay(targets: &[(&str, Target)]) {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/fuzz");
    for (name, target) in targets {
        let mut files = 0;
        for folder in ["corpus", "regressions"] {
            let Ok(entries) = std::fs::read_dir(fuzz.join(folder).join(name)) else { continue };
            for entry in entries {
                let path = entry.expect("an entry").path();
                let bytes = std::fs::read(&path).expect("reads");
                // Shown where it fails.
                #[allow(clippy::print_stdout, reason = "what was looked at explains why a test failed")]
                {
                    println!("{}", path.display());
                }
                target(&bytes);
                files += 1;
            }
        }
        assert!(files > 0, "{name} has no corpus in {}", fuzz.display());
    }
}

/// That an error's text is short enough to be told, and can be shown.
pub fn check_error(error: &impl Display) {
    let text = error.to_string();
    assert!(text.len() <= LONGEST_ERROR, "an error of {} bytes: {}", text.len(), crate::Brief(&text));
    let shown = |c: char| c == '\n' || !c.is_control();
    assert!(text.chars().all(shown), "an error with control characters: {text:?}");
}

/// Numbers and pieces from the front of some bytes; zeros and nothing where they end.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        self.piece(1).first().copied().unwrap_or(0)
    }

    /// The next two.
    pub fn short(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    /// A number that is mostly small: a byte, or after 254 and 255 the next two or four.
    pub fn number(&mut self) -> u32 {
        match self.byte() {
            254 => self.short().into(),
            255 => u32::from_le_bytes([self.byte(), self.byte(), self.byte(), self.byte()]),
            small => small.into(),
        }
    }

    /// The next `len` bytes, or as many as are left.
    pub fn piece(&mut self, len: usize) -> &'a [u8] {
        let (piece, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        piece
    }
}

/// What was read, or nothing, after a look at what the error says.
pub fn ok<T, E: Display>(result: Result<T, E>) -> Option<T> {
    result.inspect_err(check_error).ok()
}

/// What comes of work on files in memory, which never waits.
pub fn now<T>(work: impl Future<Output = T>) -> T {
    work.now_or_never().expect("memory doesn't wait")
}

/// Files in memory.
pub fn in_memory(files: &[(&str, &[u8])]) -> Objects {
    let objects = Objects::new("memory:", Arc::new(InMemory::new()));
    for (key, bytes) in files {
        now(objects.put(key, bytes.to_vec())).expect("memory takes everything");
    }
    objects
}

/// A whole file; and a header alone, which few bytes get past the length of.
fn of_safetensors(bytes: &[u8]) {
    if let Some((header, data)) = ok(safetensors::parse(bytes)) {
        check_header(&header, data.len() as u64);
    }
    if let Some((header, data_len)) = header_of(bytes) {
        check_header(&header, data_len);
    }
}

/// The header whose JSON this is, of a file that ends where its tensors do.
fn header_of(json: &[u8]) -> Option<(Header, u64)> {
    let file_len = safetensors::LENGTH_BYTES + json.len() as u64;
    let data_len = match parse_header(json, file_len) {
        Err(safetensors::Error::WrongEnd { end, .. }) => end,
        header => return ok(header).map(|header| (header, 0)),
    };
    ok(parse_header(json, file_len.checked_add(data_len)?)).map(|header| (header, data_len))
}

fn check_header(header: &Header, data_len: u64) {
    let mut in_order: Vec<_> = header.tensors.iter().collect();
    in_order.sort_by_key(|(_, info)| (info.start, info.end));
    let mut end = 0;
    for (name, info) in &in_order {
        assert_eq!((info.start, info.dtype.bytes(&info.shape)), (end, Some(info.end - info.start)), "{name}");
        end = info.end;
    }
    assert_eq!(end, data_len);
    // What is written for the same tensors is read as the same.
    let tensors = in_order.iter().map(|(name, info)| (name.as_str(), info.dtype, info.shape.as_slice()));
    let written = serialize_header(tensors, &header.metadata).expect("a header that was read can be written");
    let read = parse_header(&written[8..], written.len() as u64 + data_len).expect("what is written is read");
    assert_eq!((read.tensors, read.metadata), (header.tensors.clone(), header.metadata.clone()));
}

/// Every configuration of a model's folder: each is tried as all of them.
fn of_config(bytes: &[u8]) {
    if let Some(teacher) = ok(Teacher::parse(bytes)) {
        let tensors = teacher.tensors();
        let names: std::collections::BTreeSet<&str> = tensors.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names.len(), tensors.len(), "two tensors of one name");
        for (height, width) in [teacher.sample_size().unwrap_or((64, 64)), (1, 7), (1 << 16, 3)] {
            if let Some(layers) = ok(teacher.layers(height, width)) {
                assert!(layers.iter().enumerate().all(|(index, layer)| layer.index == index));
                assert!(layers.len() < 10_000);
            }
        }
        ok(teacher.check(|_| None));
        let _ = (teacher.text_channels(), teacher.latent_channels(), teacher.out_channels());
    }
    if let Some(vae) = ok(VaeConfig::parse(bytes)) {
        assert!(!vae.tensors(false).is_empty() && vae.factor() <= 128);
    }
    if let Some(clip) = ok(ClipConfig::parse(bytes)) {
        assert!(clip.tensors().len() < 100_000);
    }
    if let Some(t5) = ok(T5Config::parse(bytes)) {
        assert!(t5.tensors().len() < 100_000);
    }
    if let Some(scheduler) = ok(Scheduler::parse(bytes)) {
        let alphas = scheduler.alphas_cumprod();
        assert_eq!(alphas.len(), scheduler.num_train_timesteps);
        assert!(alphas.iter().all(|alpha| (0.0..=1.0).contains(alpha)), "{scheduler:?}");
    }
    if let Some(description) = ok(Description::parse(bytes)) {
        for layer in &description.layers {
            let _ = block::parameters(&layer.plan());
        }
        let written = serde_json::to_vec(&description).expect("JSON");
        assert_eq!(ok(Description::parse(&written)), Some(description));
    }
    ok(now(pipeline::read_index(&in_memory(&[("model_index.json", bytes)]))));
    let weights = serialize_header([("a", Dtype::F16, &[0][..])], &BTreeMap::new()).expect("a header");
    let index = "unet/diffusion_pytorch_model.safetensors.index.json";
    let folder = in_memory(&[(index, bytes), ("unet/1.safetensors", &weights)]);
    if let Some(files) = ok(now(weights::Files::find(&folder, "unet", weights::DIFFUSERS))) {
        assert!(files.files.iter().all(|file| file.key == "unet/1.safetensors"));
    }
}

/// A header as that of a shard, of a layer that the first bytes describe.
fn of_shard(bytes: &[u8]) {
    let mut input = Input(bytes);
    let kind = input.byte();
    let maps = (0..kind & 3).map(|_| Map { height: input.number(), width: input.number() }).collect();
    let layer = LayerPlan {
        height: input.number(),
        width: input.number(),
        channels: input.number(),
        maps,
        weighted: kind & 4 > 0,
        ..LayerPlan::default()
    };
    let contents = if kind & 8 > 0 { Contents::Inputs } else { Contents::Activations };
    let (samples, json) = (input.number() as usize, input.0);
    let buckets = buckets::maps(&layer).len();
    let alone: Vec<usize> = (0..buckets).map(|bucket| if bucket == 0 { samples } else { 0 }).collect();
    ok(shard::object_len(&shard::shapes(&layer, &alone), contents));

    let data_len = header_of(json).map_or(0, |(_, data_len)| data_len);
    let size = safetensors::LENGTH_BYTES + json.len() as u64 + data_len;
    let object = [&(json.len() as u64).to_le_bytes(), json].concat();
    let Some(layout) = ok(Layout::read(&object, size, &layer, contents, samples)) else { return };
    assert_eq!(layout.shapes.iter().map(|shape| shape.samples).sum::<usize>(), samples);
    let mut last = layout.first;
    for (bucket, shape) in layout.shapes.iter().enumerate() {
        for row in 0..shape.samples.min(64) {
            let shard::Row { input, output, weights } = layout.row(bucket, row);
            assert!(input.start <= input.end && input.end <= output.end && output.end <= weights.end);
            assert!(2 * weights.end as u64 <= size, "a row lies beyond its object");
            last = last.max(weights.end);
            if input.start < input.end {
                assert_eq!(layout.place_of(input.start).0, "input");
            }
        }
    }
    // What is written for the same shapes has the same layout.
    if samples <= 64 {
        let head = shard::head(&layout.shapes, contents, &vec![7; samples]).expect("one timestep each");
        let size = shard::object_len(&layout.shapes, contents).expect("a length");
        let read = Layout::read(&head, size, &layer, contents, samples).expect("what is written is read");
        assert_eq!(read.shapes, layout.shapes);
    }
}

/// Lines: prompts, and an attempt's log.
fn of_prompts(bytes: &[u8]) {
    if let Some(prompts) = ok(Prompts::parse("file:///prompts.txt", bytes)) {
        assert!(prompts.texts.iter().all(|text| !text.is_empty() && text.trim() == text));
        // A mark of the byte order is one at the beginning alone.
        let again = Prompts::parse("file:///prompts.txt", format!("\n{}", prompts.texts.join("\n")).as_bytes());
        assert_eq!(ok(again).map(|again| again.texts), Some(prompts.texts));
    }
    let (first, lines) = log::read(&String::from_utf8_lossy(bytes));
    if first < u64::MAX / 2 {
        let lines = VecDeque::from(lines);
        let (again, read) = log::read(&log::write(first, &lines));
        assert!(lines == read && (lines.is_empty() || again == first));
    }
}

/// Captions of images: a shard, lines beside images, a caption.
fn of_dataset(bytes: &[u8]) {
    const MOST: usize = 100;
    let read = |files: &[(&str, &[u8])]| {
        let objects = in_memory(files);
        let keys = files.iter().map(|(key, _)| (*key).to_owned()).collect();
        let is_shard = files.iter().any(|(key, _)| key.ends_with(".tar"));
        let read = async {
            match is_shard {
                true => images::read_shards(&objects, keys, MOST).await,
                false => images::read_folder(&objects, keys, MOST).await,
            }
        };
        let found = ok(now(read)).unwrap_or_default();
        assert!(found.len() <= MOST);
        for image in found {
            let size = files.iter().find(|(key, _)| *key == image.key).map_or(0, |(_, bytes)| bytes.len() as u64);
            assert!(image.start <= image.end && image.end <= size, "{image:?} lies beyond its {size} bytes");
            assert!(image.caption.len() <= 64 << 10);
        }
    };
    read(&[("a.tar", bytes)]);
    read(&[("a.png", b"image"), ("b.png", b"image"), ("metadata.jsonl", bytes)]);
    read(&[("a.png", b"image"), ("a.txt", bytes)]);
}

/// Ids, keys and URLs.
fn of_names(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let text = text.as_ref();
    let objects = in_memory(&[]);
    ok(JobId::new(text));
    ok(WorkerId::new(text));
    if let Some(task) = ok(TaskId::new(text)) {
        let _ = (task.job(), task.local());
        assert!(objects.path(task.as_str()).is_ok());
    }
    if let Some(attempt) = ok(AttemptId::new(text)) {
        let _ = attempt.epoch();
    }
    if let Some(keys::Written { task, .. }) = keys::Written::parse(text) {
        assert!(objects.path(text).is_ok() && !task.is_empty(), "{text:?} would be removed");
    }
    if let Some(manifest) = keys::Manifest::parse(text) {
        assert!(manifest.to_string() == text && objects.path(text).is_ok(), "{text:?} would be read");
    }
    if let Some(number) = keys::term_of(text) {
        assert_eq!(keys::term(number), text);
    }
    if let Some(bytes) = digest::bytes(text) {
        assert_eq!(digest::text(&bytes), text);
    }
    let _ = digest::prefix(text);
    ok(text.parse::<code::Code>());
    let _ = code::Code::nearest(text);
    ok(objects.path(text));
    ok(objects::folder_of(text));
    of_url(text);
}

/// A URL that begins with another one and a slash lies below that one.
fn of_url(text: &str) {
    let path_of = |url: &str| {
        let url = ok(objects::parse_url(url))?;
        // Folders have no host: none of these is opened.
        if url.scheme() == "file" && url.host_str().is_some_and(|host| !host.is_empty()) {
            return None;
        }
        object_store::path::Path::from_url_path(url.path()).ok().map(|path| (url, path))
    };
    let Some((url, path)) = path_of(text) else { return };
    ok(Objects::open(text));
    let Some((scheme, _)) = text.split_once("://") else { return };
    let shorter = text.match_indices('/').map(|(at, _)| &text[..at]).filter(|above| above.len() > scheme.len() + 3);
    for (above, path_above) in shorter.filter_map(path_of) {
        let is_of_it = above.scheme() == url.scheme() && above.authority() == url.authority();
        assert!(is_of_it && path.prefix_matches(&path_above), "{text:?} lies elsewhere than {above}");
    }
}

/// What strangers show and operators name: an invitation, as it is and with the digest that belongs to it; a token, a name, a
/// fingerprint; a certificate in DER, and files of them in PEM.
fn of_access(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for text in [text.as_ref(), &Invitation::sealed(bytes)] {
        if let Some(invitation) = ok(text.parse::<Invitation>()) {
            check_error(&invitation);
            assert!(!invitation.to_string().contains(&invitation.token.secret.reveal()));
            let again: Invitation = invitation.reveal().parse().expect("what is given is taken");
            assert_eq!(again.reveal(), invitation.reveal());
            for url in &invitation.addresses {
                ok(tls::endpoint(url));
            }
        }
    }
    if let Some(token) = ok(text.parse::<Token>()) {
        assert_eq!(token.reveal().parse::<Token>().map(|again| again.reveal()), Ok(token.reveal()));
    }
    if let Some(identity) = ok(text.parse::<Identity>()) {
        assert_eq!(identity.to_string(), text);
    }
    ok(text.parse::<Fingerprint>());
    if let Some(certificate) = ok(Certificate::parse(bytes)) {
        assert_eq!(certificate.fingerprint, Fingerprint::of(bytes));
        check_error(&certificate.subject);
        certificate.hosts.iter().for_each(check_error);
        if let Some(identity) = certificate.identity {
            assert_eq!(identity.to_string().parse(), Ok(identity));
        }
        assert!(tls::public_key(bytes).is_some());
    }
    if let Some(bundle) = ok(Bundle::parse(bytes)) {
        assert!(!bundle.certificates.is_empty());
        for der in &bundle.certificates {
            ok(Certificate::parse(der));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_from_fuzzing_holds() {
        replay(&TARGETS);
    }
}
