//! Matrix products through cuBLASLt. Its matrices are column-major: a row-major [r, c] matrix is a c×r one.

use std::ffi::c_void;
use std::mem::MaybeUninit;

use cudarc::cublaslt::result::{self as lt, CublasError};
use cudarc::cublaslt::sys::{self, cublasLtMatmulTile_t as Tile};
use cudarc::driver::CudaStream;

use super::gpu::{Address, Gpu, On};
use crate::error::{Error, Result};

/// The type of a matrix' values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Type {
    F32,
    Bf16,
    /// Of a teacher alone; blocks have no f16.
    F16,
}

impl Type {
    fn code(self) -> sys::cudaDataType {
        match self {
            Self::F32 => sys::cudaDataType::CUDA_R_32F,
            Self::Bf16 => sys::cudaDataType::CUDA_R_16BF,
            Self::F16 => sys::cudaDataType::CUDA_R_16F,
        }
    }

    pub(super) fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }
}

/// One operand in memory, column-major: `rows`×`columns`, `leading` values from column to column, `stride` from one
/// product of a batch to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Matrix {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) leading: usize,
    pub(super) stride: usize,
    pub(super) kind: Type,
    /// Used transposed; for a and b.
    pub(super) transposed: bool,
}

/// What is done to a product's sums, in f32, before they are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Epilogue {
    None,
    /// + a number for each of d's rows, and for each product of the batch.
    Bias,
    /// As `Bias`, then GELU in its tanh form.
    BiasGelu,
}

/// d = epilogue(alpha·a·b + beta·c), for a batch. Sums are f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    pub(super) a: Matrix,
    pub(super) b: Matrix,
    /// Of c too.
    pub(super) d: Matrix,
    pub(super) batch: usize,
    pub(super) epilogue: Epilogue,
}

/// A product with its algorithm, chosen once among those of cuBLASLt's heuristics and never by timing, so that every run adds in the
/// same order.
#[derive(Debug)]
pub(super) struct Product {
    operation: Operation,
    a: Layout,
    b: Layout,
    d: Layout,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

// SAFETY: descriptors are plain memory that cuBLASLt only reads, and setting the bias takes `&mut`.
unsafe impl Send for Product {}

/// Where the operands of a call lie. `c` is read where `beta` is not 0.
#[derive(Debug, Clone, Copy)]
pub(super) struct Operands {
    pub(super) a: Address,
    pub(super) b: Address,
    pub(super) c: Address,
    pub(super) d: Address,
    pub(super) bias: Address,
    pub(super) alpha: f32,
    pub(super) beta: f32,
}

impl Product {
    pub(super) fn new(gpu: &Gpu, shape: Shape) -> Result<Self> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let mut operation = Operation::new()?;
        for (attribute, matrix) in
            [(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, shape.a), (Attribute::CUBLASLT_MATMUL_DESC_TRANSB, shape.b)]
        {
            let transposition = match matrix.transposed {
                true => cudarc::cublas::sys::cublasOperation_t::CUBLAS_OP_T,
                false => cudarc::cublas::sys::cublasOperation_t::CUBLAS_OP_N,
            };
            operation.set(attribute, &transposition)?;
        }
        let epilogue = match shape.epilogue {
            Epilogue::None => None,
            Epilogue::Bias => Some(sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS),
            Epilogue::BiasGelu => Some(sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_GELU_BIAS),
        };
        if let Some(epilogue) = epilogue {
            operation.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
            operation.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE, &(shape.d.rows as i64))?;
            operation.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &shape.d.kind.code())?;
        }
        let layout = |matrix| Layout::new(matrix, shape.batch);
        let (a, b, d) = (layout(shape.a)?, layout(shape.b)?, layout(shape.d)?);
        let algorithm = choose(gpu, &operation, &a, &b, &d, shape)?;
        Ok(Self { operation, a, b, d, algorithm })
    }

    /// Starts the product on one of the device's two streams.
    ///
    /// # Safety
    /// The addresses must hold matrices as the shape says.
    pub(super) unsafe fn run(&mut self, gpu: &Gpu, on: On, operands: Operands) -> Result<()> {
        // SAFETY: the caller's promise; the workspace is the stream's own.
        unsafe { self.run_on(gpu, gpu.stream(on), gpu.workspace(on), operands) }
    }

    /// Starts the product on a stream, with a workspace of so many bytes.
    ///
    /// # Safety
    /// As [`Self::run`]; nothing on another stream may use the workspace.
    pub(super) unsafe fn run_on(
        &mut self,
        gpu: &Gpu,
        stream: &CudaStream,
        (workspace, workspace_bytes): (Address, usize),
        operands: Operands,
    ) -> Result<()> {
        let Operands { a, b, c, d, bias, alpha, beta } = operands;
        if bias != 0 {
            self.operation.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)?;
        }
        // SAFETY: the caller's promise; factors are read before the call returns.
        let status = unsafe {
            sys::cublasLtMatmul(
                gpu.handle(),
                self.operation.0,
                (&raw const alpha).cast(),
                a as *const c_void,
                self.a.0,
                b as *const c_void,
                self.b.0,
                (&raw const beta).cast(),
                c as *const c_void,
                self.d.0,
                d as *mut c_void,
                self.d.0,
                &raw const self.algorithm,
                workspace as *mut c_void,
                workspace_bytes,
                stream.cu_stream().cast(),
            )
        };
        status.result().map_err(failed("multiplying matrices"))
    }
}

/// Tiles with their rows. A product with a bias that reads `c` too takes up to twice as long with tiles that reach past
/// its last row, which the heuristics, not knowing of `c`, don't mind.
const TILES: [(Tile, usize); 12] = [
    (Tile::CUBLASLT_MATMUL_TILE_64x256, 64),
    (Tile::CUBLASLT_MATMUL_TILE_96x128, 96),
    (Tile::CUBLASLT_MATMUL_TILE_128x64, 128),
    (Tile::CUBLASLT_MATMUL_TILE_128x128, 128),
    (Tile::CUBLASLT_MATMUL_TILE_128x160, 128),
    (Tile::CUBLASLT_MATMUL_TILE_128x192, 128),
    (Tile::CUBLASLT_MATMUL_TILE_128x256, 128),
    (Tile::CUBLASLT_MATMUL_TILE_160x64, 160),
    (Tile::CUBLASLT_MATMUL_TILE_160x128, 160),
    (Tile::CUBLASLT_MATMUL_TILE_192x128, 192),
    (Tile::CUBLASLT_MATMUL_TILE_256x128, 256),
    (Tile::CUBLASLT_MATMUL_TILE_320x64, 320),
];
/// Choices that the heuristics are asked for.
const CHOICES: usize = 8;

/// The heuristics' first choice for operands whose addresses are as aligned as their strides; with a bias, the first one
/// with even tiles.
fn choose(
    gpu: &Gpu,
    operation: &Operation,
    a: &Layout,
    b: &Layout,
    d: &Layout,
    shape: Shape,
) -> Result<sys::cublasLtMatmulAlgo_t> {
    use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
    let preference = Preference::new()?;
    let (_, workspace) = gpu.workspace(On::Main);
    preference.set(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace)?;
    let alignments = [
        (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, shape.a),
        (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, shape.b),
        (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, shape.d),
        (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, shape.d),
    ];
    for (attribute, matrix) in alignments {
        preference.set(attribute, &alignment(matrix))?;
    }
    let mut choices = [const { MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::uninit() }; CHOICES];
    let mut count = 0;
    // SAFETY: all descriptors are alive, and there is room for as many results as asked for.
    let status = unsafe {
        sys::cublasLtMatmulAlgoGetHeuristic(
            gpu.handle(),
            operation.0,
            a.0,
            b.0,
            d.0,
            d.0,
            preference.0,
            CHOICES as i32,
            choices.as_mut_ptr().cast(),
            &raw mut count,
        )
    };
    status.result().map_err(failed("choosing a matrix product"))?;
    let found = &choices[..usize::try_from(count).unwrap_or(0).min(CHOICES)];
    // SAFETY: the first `count` results were written.
    let found: Vec<_> = found.iter().map(|choice| unsafe { choice.assume_init() }.algo).collect();
    let even =
        found.iter().find(|algorithm| shape.epilogue != Epilogue::None && has_even_tiles(algorithm, shape.d.rows));
    let unsupported =
        || Error::Gpu { what: "choosing a matrix product", reason: format!("cuBLASLt has none for {shape:?}") };
    even.or(found.first()).copied().ok_or_else(unsupported)
}

fn has_even_tiles(algorithm: &sys::cublasLtMatmulAlgo_t, rows: usize) -> bool {
    let attribute = sys::cublasLtMatmulAlgoConfigAttributes_t::CUBLASLT_ALGO_CONFIG_TILE_ID;
    let (mut tile, mut written) = (0_u32, 0);
    // SAFETY: the attribute is a u32.
    let status = unsafe {
        let target = (&raw mut tile).cast();
        sys::cublasLtMatmulAlgoConfigGetAttribute(algorithm, attribute, target, size_of::<u32>(), &raw mut written)
    };
    let even = |&(known, of_tile): &(Tile, usize)| known as u32 == tile && rows.is_multiple_of(of_tile);
    status.result().is_ok() && TILES.iter().any(even)
}

/// Bytes that every column of every product of a batch begins at a multiple of, at most 16 (less would be chosen anew
/// for each address).
fn alignment(matrix: Matrix) -> u32 {
    let bits = ((matrix.leading | matrix.stride) * matrix.kind.bytes()) | 16;
    1 << bits.trailing_zeros()
}

#[derive(Debug)]
struct Operation(sys::cublasLtMatmulDesc_t);

impl Operation {
    fn new() -> Result<Self> {
        let (sums, scale) = (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType::CUDA_R_32F);
        lt::create_matmul_desc(sums, scale).map(Self).map_err(failed("describing a matrix product"))
    }

    fn set<T>(&mut self, attribute: sys::cublasLtMatmulDescAttributes_t, value: &T) -> Result<()> {
        let value = std::ptr::from_ref(value);
        // SAFETY: cuBLASLt copies the value, whose type is the attribute's at every call above.
        unsafe { lt::set_matmul_desc_attribute(self.0, attribute, value.cast(), size_of::<T>()) }
            .map_err(failed("describing a matrix product"))
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        // SAFETY: the descriptor is this value's own.
        let _ = unsafe { lt::destroy_matmul_desc(self.0) };
    }
}

#[derive(Debug)]
struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    fn new(matrix: Matrix, batch: usize) -> Result<Self> {
        use sys::cublasLtMatrixLayoutAttribute_t::{
            CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
        };
        let Matrix { rows, columns, leading, stride, kind, .. } = matrix;
        let layout = lt::create_matrix_layout(kind.code(), rows as u64, columns as u64, leading as i64)
            .map(Self)
            .map_err(failed("describing a matrix"))?;
        let (batch, stride) = (batch as i32, stride as i64);
        // SAFETY: cuBLASLt copies the values, whose types are the attributes'.
        unsafe {
            let count = (&raw const batch).cast();
            lt::set_matrix_layout_attribute(layout.0, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, count, 4)
                .map_err(failed("describing a matrix"))?;
            let offset = (&raw const stride).cast();
            lt::set_matrix_layout_attribute(layout.0, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, offset, 8)
                .map_err(failed("describing a matrix"))?;
        }
        Ok(layout)
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: the descriptor is this value's own.
        let _ = unsafe { lt::destroy_matrix_layout(self.0) };
    }
}

struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new() -> Result<Self> {
        lt::create_matmul_pref().map(Self).map_err(failed("describing a matrix product"))
    }

    fn set<T>(&self, attribute: sys::cublasLtMatmulPreferenceAttributes_t, value: &T) -> Result<()> {
        let value = std::ptr::from_ref(value);
        // SAFETY: cuBLASLt copies the value, whose type is the attribute's at every call above.
        unsafe { lt::set_matmul_pref_attribute(self.0, attribute, value.cast(), size_of::<T>()) }
            .map_err(failed("describing a matrix product"))
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: the descriptor is this value's own.
        let _ = unsafe { lt::destroy_matmul_pref(self.0) };
    }
}

fn failed(what: &'static str) -> impl Fn(CublasError) -> Error {
    move |error| Error::Gpu { what, reason: error.to_string() }
}
