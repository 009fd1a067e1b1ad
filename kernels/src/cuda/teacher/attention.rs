use candle_core::Tensor;

use super::super::gpu::{Address, Source};
use super::super::product::Type;
use super::super::weights::suffix;
use super::queue::{Queue, expect, operand, start};
use crate::error::{Error, Result};

/// The tensor cores' kernels: channels of a head, which narrower ones are padded to, queries of a block and keys of a tile.
const FLASH: [(usize, usize, usize); 12] = [
    (16, 128, 128),
    (32, 128, 128),
    (40, 128, 128),
    (48, 128, 128),
    (64, 128, 64),
    (72, 128, 64),
    (80, 128, 64),
    (96, 64, 64),
    (112, 64, 64),
    (128, 64, 64),
    (144, 64, 64),
    (160, 64, 64),
];
/// Tiles of keys, and of values, that shared memory holds.
const STAGES: usize = 2;
/// Channels of a head that the plain kernel takes.
const WIDEST: usize = 512;
/// Queries and keys that the plain kernel takes at a time.
const PLAIN: usize = 16;
/// Queries that a block takes of the queries' gradient, and keys at a time.
const OF_GRADIENT: usize = 32;

/// How channels are split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Heads.
    pub count: usize,
    /// Channels of one.
    pub dim: usize,
}

/// Queries, keys or values within a tensor whose last dimension may hold more than them.
#[derive(Debug, Clone, Copy)]
pub struct Projected<'a> {
    /// [B, .., channels].
    pub tensor: &'a Tensor,
    /// Their first channel.
    pub offset: usize,
}

/// Mirrors `Attention` of `cuda/teacher/attention.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Arguments {
    q: Address,
    k: Address,
    v: Address,
    bias: Address,
    out: Address,
    q_sample: i64,
    k_sample: i64,
    v_sample: i64,
    out_sample: i64,
    q_row: i32,
    k_row: i32,
    v_row: i32,
    out_row: i32,
    heads: i32,
    dim: i32,
    queries: i32,
    keys: i32,
    scale: f32,
    padding: i32,
}

const _: () = assert!(size_of::<Arguments>() == 112, "cuda/teacher/attention.cuh says the same");

impl Arguments {
    /// A grid of which each block takes so many queries of a head.
    fn blocks(&self, queries: usize, dims: &[usize]) -> (usize, usize, usize) {
        let batch = dims.first().copied().unwrap_or(0);
        ((self.queries as usize).div_ceil(queries).max(1), self.heads as usize, batch)
    }
}

/// Where queries, keys or values lie.
struct Place {
    at: Address,
    positions: usize,
    /// Values from position to position.
    row: usize,
}

/// What attention and its gradient are given, checked.
struct Given {
    kind: Type,
    /// Of the queries, but for the last dimension, which is all heads' channels.
    dims: Vec<usize>,
    /// Without the address of what comes out.
    arguments: Arguments,
}

/// softmax(Q Kᵀ / √d + bias) V for each head: [B, .., heads · d], the leading dimensions those of the queries. The bias is
/// one number a key, [B, keys] f32. Scores are never held in memory.
///
/// # Errors
/// Tensors of other shapes or dtypes, or not contiguous; a head of more than 512 channels.
pub fn attention(
    queue: &Queue,
    query: Projected<'_>,
    key: Projected<'_>,
    value: Projected<'_>,
    heads: Heads,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    let Given { kind, dims, mut arguments } = given(query, key, value, heads, bias)?;
    let (out, at) = queue.empty(&dims, kind)?;
    arguments.out = at;
    let suffix = suffix(kind);
    // 16 bytes are loaded at once.
    let Arguments { q, k, v, q_row, k_row, v_row, dim, .. } = arguments;
    let aligned = [q, k, v].iter().all(|at| at.is_multiple_of(16))
        && [q_row, k_row, v_row, dim].iter().all(|values| values % 8 == 0);
    let flash = FLASH.iter().find(|(channels, ..)| kind != Type::F32 && aligned && heads.dim <= *channels);
    let (name, queries, threads, shared) = match flash {
        Some(&(channels, queries, keys)) => {
            let row = (channels.next_multiple_of(16) + 8) * kind.bytes();
            (format!("flash_{suffix}_{channels}"), queries, 128, (2 * STAGES * keys).max(queries) * row)
        }
        None => {
            let shared = (2 * PLAIN * (heads.dim + 1) + PLAIN * PLAIN) * size_of::<f32>();
            (format!("plain_{suffix}"), PLAIN, PLAIN * PLAIN, shared)
        }
    };
    let blocks = arguments.blocks(queries, &dims);
    // SAFETY: the tensors have the positions and channels that the kernel is told.
    unsafe { start!(queue, (Source::Attention, &name), blocks, (threads, 1), shared, [arguments])? };
    Ok(out)
}

/// The gradient of the queries from that of [`attention`], both [B, .., heads · d], where keys and values are given. The
/// queries' tensor must have nothing but them.
///
/// # Errors
/// As [`attention`].
pub fn query_gradient(
    queue: &Queue,
    query: &Tensor,
    key: Projected<'_>,
    value: Projected<'_>,
    heads: Heads,
    bias: Option<&Tensor>,
    gradient: &Tensor,
) -> Result<Tensor> {
    let query = Projected { tensor: query, offset: 0 };
    let Given { kind, dims, mut arguments } = given(query, key, value, heads, bias)?;
    expect(&operand(query.tensor, "query")?.0, "query", &dims, kind)?;
    let gradient = expect(&operand(gradient, "gradient")?.0, "gradient", &dims, kind)?;
    let (out, at) = queue.empty(&dims, kind)?;
    arguments.out = at;
    let name = format!("query_gradient_{}", suffix(kind));
    let blocks = arguments.blocks(OF_GRADIENT, &dims);
    let shared = 4 * OF_GRADIENT * (heads.dim + 1) * size_of::<f32>();
    // SAFETY: the tensors have the positions and channels that the kernel is told.
    unsafe { start!(queue, (Source::Gradients, &name), blocks, (256, 1), shared, [arguments, gradient])? };
    Ok(out)
}

fn given(
    query: Projected<'_>,
    key: Projected<'_>,
    value: Projected<'_>,
    heads: Heads,
    bias: Option<&Tensor>,
) -> Result<Given> {
    let inner = heads.count * heads.dim;
    let (view, kind) = operand(query.tensor, "query")?;
    let batch = view.dims.first().copied().unwrap_or(0);
    let q = place(query, "query", kind, batch, inner)?;
    let k = place(key, "key", kind, batch, inner)?;
    let v = place(value, "value", kind, batch, inner)?;
    if k.positions != v.positions || k.positions == 0 {
        let (found, expected) = (format!("{} values", v.positions), format!("{} and at least one", k.positions));
        return Err(Error::Tensor { what: "value", found, expected });
    }
    if heads.dim > WIDEST {
        let (found, expected) = (format!("heads of {} channels", heads.dim), format!("at most {WIDEST}"));
        return Err(Error::Tensor { what: "query", found, expected });
    }
    let bias = match bias {
        Some(bias) => expect(&operand(bias, "bias")?.0, "bias", &[batch, k.positions], Type::F32)?,
        None => 0,
    };
    let mut dims = view.dims.clone();
    if let Some(last) = dims.last_mut() {
        *last = inner;
    }
    let arguments = Arguments {
        q: q.at,
        k: k.at,
        v: v.at,
        bias,
        out: 0,
        q_sample: (q.positions * q.row) as i64,
        k_sample: (k.positions * k.row) as i64,
        v_sample: (v.positions * v.row) as i64,
        out_sample: (q.positions * inner) as i64,
        q_row: q.row as i32,
        k_row: k.row as i32,
        v_row: v.row as i32,
        out_row: inner as i32,
        heads: heads.count as i32,
        dim: heads.dim as i32,
        queries: q.positions as i32,
        keys: k.positions as i32,
        scale: 1.0 / (heads.dim as f32).sqrt(),
        padding: 0,
    };
    Ok(Given { kind, dims, arguments })
}

fn place(projected: Projected<'_>, what: &'static str, kind: Type, batch: usize, inner: usize) -> Result<Place> {
    let (view, _) = operand(projected.tensor, what)?;
    let at = view.address(kind)? + (projected.offset * kind.bytes()) as u64;
    match *view.dims {
        [b, ref middle @ .., row] if b == batch && row >= projected.offset + inner => {
            Ok(Place { at, positions: middle.iter().product(), row })
        }
        ref dims => {
            let expected = format!("[{batch}, .., at least {}]", projected.offset + inner);
            Err(Error::Tensor { what, found: format!("{dims:?}"), expected })
        }
    }
}
