# The only parallel loop. Knows rows, tiles and scratch memory; nothing of losses, of arrays' flags or of Python.
#
# (a) Three regimes. FEW: short rows, transposed in groups. ROWS: a row's classes lie side by side. STRIP: rows lie side by
#     side. Few classes, rows of softmax, its gradient and log_softmax and those of the backward operations are reduced and written
#     by one kernel. All that is chosen by the operation, the row's length and its class stride alone, so that a row's bits depend on
#     nothing else, but where two kernels make the same bits; how many rows a block has, and who computes it, changes no bit. What
#     is added up over rows is added block by block, so its blocks do not depend on the number of threads.
# (b) A row longer than a tile is reduced tile by tile, merged in order, and written tile by tile, whether one thread does all
#     of that, several share the tiles, or forward_rows writes a row while it reduces the next.
# (c) What a kernel cannot read or write in place (another dtype, byte order, stride) passes through a piece of scratch.
# (d) Scratch of all threads is one allocation, made before anything is written.

from cython.parallel cimport prange, threadid
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from cpython.pycapsule cimport PyCapsule_GetPointer

from cylsm._kernels cimport (
    BLOCK_BESIDE,
    GROUP,
    LONG_GROUP,
    LOG_SOFTMAX,
    LOG_SOFTMAX_BACKWARD,
    LOGSUMEXP,
    LOGSUMEXP_WEIGHTED,
    MIXTURE,
    MIXTURE_COST,
    MOST_FORWARD_TILES,
    NEAR_CLASSES,
    NOTHING,
    SCRATCH,
    SHORT_CLASSES,
    SHORTEST_ROW,
    SHORTEST_SOFTMAX,
    SOFTMAX,
    SOFTMAX_BACKWARD,
    SOFTMAX_GRADIENT,
    TILE_BELOW,
    TILE_BYTES,
    KernelTable,
    forward_scratch,
)
from cylsm._threads cimport begin_region, enter, leave, note_region, now, threads_for

from importlib import import_module

from cylsm import _cpu, _threads

cdef extern from "_native.h" nogil:
    void stream_fence()

cdef enum:
    FEW_ROWS = 256                  # rows of a FEW block: its state stays in L1
    FEW_BLOCK_BYTES = 65536         # longer rows make smaller blocks, so that threads have enough of them
    # Of a ROWS block, where there are many: between L1 and L2. softmax of 4096 x 1000 float32 takes 0.82 ms on one thread so,
    # 0.85 with 64 KB and 0.89 with 16 KB; log_softmax 0.81, 0.79 and 0.86.
    ROW_BLOCK_BYTES = 131072
    # Of gradients that forward_rows takes: many batches, the first of which writes nothing beside it. cross_entropy_with_grad of
    # 3000 x 3000 float32 takes 2.4 ms so, and 2.7 with 256 KB.
    GRADIENT_BLOCK_BYTES = 1048576
    # Of gradients of rows of several tiles so many rows: 1000 x 50257 float32 take 12.5 ms so, 12.9 with 8, and 12.2 with 32, which
    # would leave threads fewer blocks.
    LONG_GRADIENT_ROWS = 16
    MANY_GRADIENT_BLOCKS = 16       # both are halved for so many, as others for MANY_BLOCKS
    # Their rows, at least: cross_entropy_with_grad of 32768 x 1000 float64 takes 21 ms so, and otherwise 25; of 1000 x 400 float32
    # 132 us and 143, but of 2048 x 257 227 and 209.
    LEAST_GRADIENT_BYTES = 1280
    # Beside a single row none is written: of so many bytes it is left to the other kernels. log_softmax of 1 x 30000 float32 takes
    # 11.9 us so, and 12.7; of 1 x 257 0.73 and 0.70.
    LONG_SINGLE_BYTES = 16384
    MOST_BLOCK_ROWS = 128           # log_softmax of 4096 x 128 float32 takes 79 us so, and 85 with 32
    FEWER_BYTES = 32768             # blocks are halved down to this, so that threads have
    MANY_BLOCKS = 8                 # so many of them
    EQUAL_BLOCKS = 16               # a thread: of fewer, all threads get the same number
    # Threads among which rows that are added up are shared equally: their sums may not depend on how many there are.
    SUMMED_SHARES = 4
    STRIP_TILE_BYTES = 512          # of a lane in a tile of a STRIP block, doubled for very many classes
    MOST_STRIP_TILES = 16           # each has a state of its own
    # So many tiles are made equal, those of rows in whole lines, and their number even: two threads that share a row finish
    # together. Softmax of 3 x 100000 float32 takes 41 us so, and 48 with a short last tile. Of more tiles the rounding
    # would leave nothing to the last one.
    MOST_EQUAL_TILES = 64
    # Rows of tiles that threads cannot share evenly: fewer than FEW_ROUNDS a thread are shared tile by tile, of more those that
    # are left over, where a thread's part of these, or a narrow run, is SHARED_WORK elements. Softmax of 9 x 100000 float64
    # takes 200 us so, and 218.
    FEW_ROUNDS = 4
    SHARED_WORK = 24576
    # Runs of few classes are computed where they lie if they are a group or have so many lanes; a gradient's, of which three
    # arrays would be copied, if they are whole lines or have RUN_OF_LINES: of 64 x 6 x 7 x 7 float64 they take 9 us so, and 11.
    # Runs of whole lines are too, where the kernel takes lines of several together. Others are copied side by side, SPANNED_ROWS
    # lanes to a block: log_softmax of 128 x 10 x 9 x 9 float32 takes 23 us so, otherwise 27, and with 512 24.
    RUN_OF_GROUPS = 96
    RUN_OF_LINES = 48
    SPANNED_ROWS = 256
    # Of more classes than those few so many bytes: log_softmax of 62 x 19 x 2 x 8 takes 10.6 us so, and a run at a time 13.0;
    # with 8 KB and 128 KB two and four hundredths more.
    SPANNED_BYTES = 32768
    # Of log_softmax and softmax of rows runs of up to so many bytes. Of two of every three of 40000 rows of 100 float32
    # log_softmax takes 1.7 ms so, and 2.7; of four of five of 140 softmax 1.0 and 0.67.
    SHORT_RUN_BYTES = 1600
    # A block of several runs where they lie has up to so many: gradients of 1000 x 3 x 16 x 16 float32 101 us, with 256 110.
    MOST_SPANNED_ROWS = 1024
    LINE = 16                       # elements in 64 bytes, at most
    LINE_BYTES = 64
    FOLDED = 4                      # rows whose sums are folded together
    MOST_TILE = 8388608             # elements: ties are counted in float
    # Runs of so many bytes a tile are too narrow for threads to share their lanes: softmax of 4000 x 200 float32 along the first
    # axis takes 111 us tile by tile, and if each thread has half of the lanes 173. Of many tiles at most so many: of 1000 x 1500
    # float64 690 us and 720. On a Xeon, whose lines take 90 ns from one core to another, softmax of 170 x 587 float32 takes
    # 50 us so, and 63; of 200 x 803, which is wider, 67 and 77; log_softmax_backward of that 63 and 47; softmax of
    # 2000 x 5000 8.6 ms and 5.7.
    NARROW_BYTES = 1536
    MOST_NARROW_BYTES = 12288
    # And runs of so many bytes are too short for them to share at all: softmax of 198 x 109 float32 takes 13 us on one thread, and
    # 33 on two that share its lanes; of 100 x 603 28 and 36, of 100 x 803 54 and 48.
    LEAST_SHARED_BYTES = 3072
    # Of such a tile: it is read again from L2. Wide blocks touch few pages: on one thread log_softmax of 4096 x 1000
    # float32 along the first axis takes 11 ms so, with 256 lanes, and 18 ms with 64.
    STRIP_BYTES = 262144
    MOST_LANES = 512
    FEW_LINED_BLOCKS = 4            # fewer do not begin with lines: past_line_of
    # Of a backward operation's few classes: all but the last lanes of a block are asked for before they are read.
    GRADIENT_LANES = 2048
    LEAST_STRIDE = 16               # elements from class to class from which on rows are lanes,
    LEAST_SHORT_STRIDE = 3          # or few classes where rows lie side by side: softmax of 128 x 10 x 8 takes 7 us so, and 9
    # Or classes of more than LONG_ROW_BYTES, which would be gathered from the same lines row by row: log_softmax of 100000 x 12
    # float32 along the first axis takes 1.1 ms so, otherwise 3.7, and of one of its columns 0.40 and 0.24.
    LEAST_LONG_STRIDE = 8
    LONG_ROW_BYTES = 131072
    LEAST_LANES = 64
    # More than NEAR_CLASSES so many bytes apart are not taken a few lanes at a time, which asks memory for little ahead and does
    # not stream: softmax of 64 x 12 x 128 x 128 float32 takes 2.8 ms so, and otherwise 4.3. Nor are those whole pages apart,
    # whose lines share a set of the first cache: gradients of 16 x 12 x 64 x 64 106 us, and otherwise 155.
    LONG_LANES_BYTES = 8192
    PAGE_BYTES = 4096
    # Longest row that is expected to wait in L2 from its reduction to its writing.
    KEPT_BYTES = 524288
    # Rows of arrays that the last-level cache cannot hold together are streamed around it from here on: cross_entropy_with_grad of
    # 60000 x 200 float32 would take 4.8 ms so, and takes 3.9; on AVX2 log_softmax of 200000 x 150 15.5 and 11.8. Gradients, whose
    # sums take little beside memory, from the shortest row on: log_softmax_backward of 100000 x 64 1.03 and 1.30.
    STREAM_ROW_BYTES = 1024
    # And those of forward_rows where exps take so little beside memory that softmax is worth streaming. On two threads, streamed and
    # not: softmax of 12000 x 1000 float32 1.58 ms and 1.99; log_softmax of 200000 x 150 8.9 and 10.8, of 100000 x 100 3.2 and 3.1.
    STREAM_FORWARD_BYTES = 512
    # The same of lanes. Of few classes the processor foresees the next lanes itself, and they are neither asked for ahead nor
    # streamed: up to so many of float32; two of float64 take 1.8 ms asked for and streamed, and 2.1. log_softmax of 16 x 2 x
    # 512 x 512 float32 takes 1.9 ms so, and would take 3.0; softmax of 4 x 3 x 512 x 512 0.58, and 0.68. Of more: log_softmax
    # of 64 x 8 x 128 x 128 2.2 asked for, and otherwise 3.3. Gradients few_strip always asks for and never streams.
    STREAM_RUN_BYTES = 512
    # New arrays of so many bytes are not streamed to. glibc takes them from the system each time; smaller ones it may have had
    # before. softmax of 16384 x 1000 float32 that returns a new array takes 8.9 ms so, and streamed 10.9;
    # cross_entropy_with_grad 9.0 and 13.0.
    UNMAPPED_BYTES = 33554432
    FORESEEN_CLASSES = 4
    # What a row, or a lane, takes beside its elements, in elements, chosen with GRAIN and its examples: the logarithm, and in a
    # row of few classes its transposition.
    ROW_WORK = 8
    LANE_WORK = 2

cdef enum Regime:
    FEW
    ROWS
    STRIP

cdef struct Worker:
    Block block
    void *x_piece
    void *y_piece
    void *out_piece
    void *transposed
    char apart[128]                 # two threads' never share a line

cdef struct Plan:
    Task *task
    const Kernels *kernels
    Regime regime
    Py_ssize_t size                 # of a real, bytes
    Py_ssize_t work                 # in elements of float32
    Py_ssize_t block_rows
    Py_ssize_t span                 # a block has up to so many runs, where that axis is short; else 1
    bint run_by_run                 # they are computed where they lie, otherwise copied side by side
    Py_ssize_t past_line            # of lanes, all blocks of a run but the first begin so many lanes earlier, with a line
    Py_ssize_t most_rows            # so the last may have more than block_rows
    Py_ssize_t blocks_across        # blocks side by side along the last row axis,
    Py_ssize_t blocks_down          # and along the axis before
    Py_ssize_t blocks
    Py_ssize_t tile
    Py_ssize_t tiles
    bint x_direct
    bint y_direct
    bint out_direct
    bint by_tiles                   # threads share tiles:
    Py_ssize_t whole                # after so many blocks, which are one thread's each,
    Py_ssize_t together             # those of so many at a time
    bint far                        # the arrays take half of the last-level cache, or more
    bint beyond                     # they take all of it, or more
    bint stream                     # out is written around the caches
    bint at_once                    # one kernel reduces, finishes and writes a block:
    bint backward_rows              # backward_rows,
    bint forward                    # forward_rows,
    bint softmax_rows               # softmax_rows, or otherwise few_rows or few_strip
    bint stateless                  # one of the first three, which keep no state, but for a gradient
    bint kept                       # exps are kept
    bint ask_early                  # out is asked for while x is reduced
    int threads
    Worker *workers                 # one a thread, and one a block whose tiles are shared
    int phase                       # of tiles that are shared: the operation to reduce, or APPLY

cdef enum:
    APPLY = -1


cdef Py_ssize_t last_level_cache_bytes = _cpu.last_level_cache_bytes(_threads.granted_processors())


# ---- instruction sets --------------------------------------------------------------------------------------------

cdef const KernelTable *table
tables = {}
current_isa = None


def load_tables():
    for name in _cpu.runnable():
        try:
            module = import_module(f"cylsm._kernels_{name}")
        except ImportError:
            if name == "baseline":
                raise
            continue
        tables[name] = module.capsule


def _use_isa(name):
    """Switch to another instruction set's kernels; for tests only, with no other call under way."""
    global table, current_isa
    table = <const KernelTable *> PyCapsule_GetPointer(tables[name], "cylsm.KernelTable")
    current_isa = name


load_tables()
_use_isa(_cpu.choose(tuple(tables)))


def _use_cache_bytes(Py_ssize_t size):
    """Take the last-level cache to be so large, and return what it was taken to be; for tests only."""
    global last_level_cache_bytes
    before = last_level_cache_bytes
    last_level_cache_bytes = size
    return before


def isa():
    return current_isa


def available_isas():
    return list(tables)


cdef const Kernels *kernels(bint wide) noexcept nogil:
    return &table.of_double if wide else &table.of_float


def _primitive(name, bint wide, Py_ssize_t n, size_t x, size_t y, size_t out):
    """Compute exp, of a difference or times a factor, or the logarithm of a sum, for arrays at these addresses; for tests only."""
    cdef const Kernels *primitives = kernels(wide)
    if name == "exp_from":
        primitives.exp_of(<const void *> x, <void *> out, n)
    elif name == "exp_near":
        primitives.exp_near_of(<const void *> x, <const void *> y, <void *> out, n)
    elif name == "exp_scaled":
        primitives.exp_scaled_of(<const void *> x, <const void *> y, <void *> out, n)
    elif name == "log_of_sum":
        primitives.log_of(<const void *> x, <const void *> y, <void *> out, n)
    else:
        raise ValueError(f"no primitive is called {name!r}")


# ---- where things lie --------------------------------------------------------------------------------------------

cdef char *row_of(const Task *task, const Operand *operand, const Block *block) noexcept nogil:
    """The operand's first row (or row entry) of the block."""
    cdef char *p = operand.data + block.first * operand.row_strides[task.ndim - 1]
    cdef Py_ssize_t outer = block.outer
    cdef int axis
    for axis in range(task.ndim - 2, -1, -1):
        p += (outer % task.shape[axis]) * operand.row_strides[axis]
        outer = outer // task.shape[axis]
    return p


cdef Py_ssize_t run_stride(const Task *task, const Operand *operand) noexcept nogil:
    return operand.row_strides[task.ndim - 2] if task.ndim > 1 else 0


cdef inline Py_ssize_t row_stride(const Plan *plan, const Operand *operand) noexcept nogil:
    return operand.row_strides[plan.task.ndim - 1]


cdef bint is_direct(const Plan *plan, const Operand *operand) noexcept nogil:
    """Whether a kernel can walk the operand where it lies."""
    cdef Py_ssize_t along, across
    cdef const Task *task = plan.task
    if not operand.native:
        return False
    if (plan.span > 1 and not plan.run_by_run
            and run_stride(task, operand) != task.shape[task.ndim - 1] * row_stride(plan, operand)):
        return False
    if plan.regime == STRIP:
        along, across = row_stride(plan, operand), operand.class_stride
    else:
        along, across = operand.class_stride, row_stride(plan, operand)
    return (along == plan.size or (plan.regime != STRIP and plan.task.classes == 1)) and across % plan.size == 0


cdef Regime regime_of(const Task *task, Py_ssize_t size) noexcept nogil:
    """By the operation, the row's length and its class stride. A small stride is gathered: its lines are shared by the row's
    own. Of few classes few_rows and few_strip make the same bits, so that lanes that lie side by side may be taken as they are."""
    cdef Py_ssize_t stride = task.x.class_stride if task.x.class_stride > 0 else -task.x.class_stride
    cdef bint beside = task.x.row_strides[task.ndim - 1] == task.x.item_bytes
    cdef const Kernels *of = kernels(task.wide)
    cdef Py_ssize_t few_bytes = of.forward_few_bytes if is_forward(task.operation) else of.few_bytes
    if task.classes > 1 and (stride >= LEAST_STRIDE * task.x.item_bytes
                             or (stride >= LEAST_LONG_STRIDE * task.x.item_bytes and task.classes * size > LONG_ROW_BYTES)
                             or (beside and stride >= LEAST_SHORT_STRIDE * task.x.item_bytes
                                 and task.classes < SHORTEST_ROW and task.operation != LOGSUMEXP_WEIGHTED)):
        return STRIP
    return FEW if task.classes * size <= few_bytes else ROWS


cdef inline bint is_forward(int operation) noexcept nogil:
    return operation == LOG_SOFTMAX or operation == SOFTMAX


cdef inline bint is_pipelined(const Plan *plan) noexcept nogil:
    """Whether forward_rows takes rows of this length, and so many: of several tiles where each thread, or each block of a gradient,
    has two. Softmax of 4 x 50257 float32 takes 31 us so, and 38 where threads share tiles."""
    cdef const Task *task = plan.task
    cdef Py_ssize_t row_bytes = task.classes * plan.size
    cdef bint gradient = task.operation == SOFTMAX_GRADIENT
    if (plan.regime != ROWS or plan.kernels.forward_rows == NULL or not (gradient or is_forward(task.operation))
            or (gradient and not (plan.kernels.forwards_gradients and row_bytes >= LEAST_GRADIENT_BYTES))):
        return False
    if plan.tiles == 1:
        return task.rows > 1 or row_bytes < LONG_SINGLE_BYTES
    return (plan.tiles <= MOST_FORWARD_TILES and task.rows >= 2 * (MANY_GRADIENT_BLOCKS if gradient else plan.threads)
            and task.shape[task.ndim - 1] > 1 and is_direct(plan, &task.x) and is_direct(plan, &task.out))


cdef inline bint is_softmax(int operation) noexcept nogil:
    return operation == SOFTMAX or operation == SOFTMAX_GRADIENT


cdef inline bint is_backward(int operation) noexcept nogil:
    return operation == LOG_SOFTMAX_BACKWARD or operation == SOFTMAX_BACKWARD


cdef inline bint is_mixture(int operation) noexcept nogil:
    return operation == MIXTURE or operation == MIXTURE_COST


cdef inline int reduction_of(int operation) noexcept nogil:
    """The operation that a row is reduced for first."""
    return LOGSUMEXP if is_mixture(operation) or operation == LOG_SOFTMAX else operation


cdef Py_ssize_t clamp(Py_ssize_t value, Py_ssize_t least, Py_ssize_t most) noexcept nogil:
    return max(least, min(value, most))


cdef bint takes_few_lanes(const Task *task) noexcept nogil:
    """Whether few_strip takes the row. Weighted sums of lanes have one body for all lengths, reduce_strip's."""
    cdef Py_ssize_t stride = task.x.class_stride if task.x.class_stride > 0 else -task.x.class_stride
    cdef bint far_apart = stride >= LONG_LANES_BYTES or stride % PAGE_BYTES == 0
    return (task.classes <= (NEAR_CLASSES if far_apart else SHORT_CLASSES)) and task.operation != LOGSUMEXP_WEIGHTED


cdef Py_ssize_t equal_parts(Py_ssize_t whole, Py_ssize_t most, Py_ssize_t least, Py_ssize_t wholes, int shares) noexcept nogil:
    """How many equal parts `whole` has, of at most `most`; where `wholes` times as many are few, and none less than `least`, a
    number that can be shared evenly."""
    cdef Py_ssize_t parts = (whole + most - 1) // most
    while wholes * parts < EQUAL_BLOCKS * shares and wholes * parts % shares != 0 and (parts + 1) * least <= whole:
        parts += 1
    return parts


cdef inline int shares_of(const Plan *plan) noexcept nogil:
    return SUMMED_SHARES if plan.task.adds_up else plan.threads


cdef inline bint takes_groups_of_lanes(const Plan *plan) noexcept nogil:
    """Whether few_strip takes GROUP lanes at a time, and not any multiple of 16."""
    return (plan.regime == STRIP and plan.at_once and not is_backward(plan.task.operation)
            and (plan.task.classes > NEAR_CLASSES or is_mixture(plan.task.operation)))


cdef Py_ssize_t equal_rows(const Plan *plan) noexcept nogil:
    """Rows of a block, in whole groups where the regime has them. In blocks of 256 one of two threads would have 512 of 600 rows:
    log_softmax_backward of 600 x 56 float32 takes 5.6 us so, and otherwise 8.2."""
    cdef const Task *task = plan.task
    cdef Py_ssize_t across = task.shape[task.ndim - 1], together = 1, parts
    if takes_groups_of_lanes(plan):
        together = GROUP
    elif plan.regime == STRIP:
        together = LINE
    elif plan.regime == FEW and (plan.backward_rows or plan.softmax_rows):
        together = FOLDED
    elif plan.regime == FEW:
        together = GROUP if task.classes * plan.size <= LINE_BYTES else LONG_GROUP
    parts = equal_parts(across, plan.block_rows, 2 * together if together > 1 else 1, task.rows // across, shares_of(plan))
    return ((across + parts - 1) // parts + together - 1) // together * together


cdef Py_ssize_t past_line_of(const Plan *plan) noexcept nogil:
    """How many lanes behind a line of the result, or else of x, each run of each class begins, if all do alike. Vectors across two
    lines take longer, and a line that two threads write longer still: softmax of 16 x 5 x 64 x 64 float32, 16 bytes behind a line as
    NumPy's large arrays, takes 112 us on one thread so, and otherwise 121. What is added up over blocks may not depend on where
    arrays lie, nor weighted sums on how many lanes there are. The last block gets what the first is short of, which does not
    pay where they are few, or taken in groups: log_softmax of 16 x 12 x 32 x 32 float32 would take 37.6 us, and takes 35.5."""
    cdef const Task *task = plan.task
    cdef const Operand *operand = &task.out if task.out.data != NULL else &task.x
    cdef int axis
    if (plan.regime != STRIP or takes_groups_of_lanes(plan) or plan.blocks_across < FEW_LINED_BLOCKS or task.adds_up
            or task.operation == LOGSUMEXP_WEIGHTED or operand.row_strides[task.ndim - 1] != plan.size
            or operand.class_stride % LINE_BYTES != 0):
        return 0
    for axis in range(task.ndim - 1):
        if operand.row_strides[axis] % LINE_BYTES != 0:
            return 0
    return <Py_ssize_t> (<size_t> operand.data % LINE_BYTES) // plan.size


cdef inline bint fills_groups(Py_ssize_t rows) noexcept nogil:
    return rows == GROUP or rows >= RUN_OF_GROUPS


cdef bint takes_run_by_run(const Plan *plan) noexcept nogil:
    """Whether runs of lanes are taken where they lie: by few_strip if they are so long, or so even, that copying them would take
    longer than the lanes that it computes twice. Gradients of 64 x 10 x 3 x 3 float64 along the second axis take 10 us so, and
    copied 6.3."""
    cdef Py_ssize_t across = plan.task.shape[plan.task.ndim - 1]
    if plan.regime != STRIP:
        return False
    if not plan.at_once:
        return across >= LINE
    if is_backward(plan.task.operation):
        return across % LINE == 0 or across >= RUN_OF_LINES
    return fills_groups(across) or (across % LINE == 0 and plan.kernels.spreads_lines and not takes_groups_of_lanes(plan))


cdef Py_ssize_t blocks_down_of(const Plan *plan) noexcept nogil:
    """Into how many blocks the runs along the last row axis but one are cut: what a block costs beside its elements shows where
    they are short. Weighted sums have a block a run, since of another number of lanes the compiler may fuse other products."""
    cdef const Task *task = plan.task
    cdef Py_ssize_t across = task.shape[task.ndim - 1], runs = task.shape[task.ndim - 2] if task.ndim > 1 else 1
    cdef Py_ssize_t most = SPANNED_ROWS if plan.regime == STRIP else plan.block_rows
    if (runs <= 1 or not task.runs_join or plan.tiles > 1 or (plan.regime == FEW and fills_groups(across))
            or (plan.regime == STRIP and task.operation == LOGSUMEXP_WEIGHTED)
            or (plan.regime == ROWS and (not is_forward(task.operation) or across * task.classes * plan.size > SHORT_RUN_BYTES))):
        return runs
    if plan.regime == STRIP and not plan.at_once:
        most = min(most, SPANNED_BYTES // (task.classes * plan.size))
    elif plan.run_by_run:
        most = clamp(task.rows // MANY_BLOCKS, SPANNED_ROWS, MOST_SPANNED_ROWS)
    return equal_parts(runs, clamp(most // across, 1, runs), 1, task.rows // (across * runs), shares_of(plan))


cdef inline bint is_foreseen(const Plan *plan) noexcept nogil:
    return plan.task.classes <= FORESEEN_CLASSES and not plan.task.wide


cdef bint streams(const Plan *plan, Py_ssize_t row_bytes) noexcept nogil:
    """Whether out is worth streaming where the caches cannot hold it; of what few_strip takes, what at_once writes but
    gradients. Of the gradient by labels an element of each row is written again. That costs little where rows have many lines of
    their own: cross_entropy_with_grad of 60000 x 1000 float32 takes 21 ms so, and otherwise 24; of lanes, of 64 x 21 x 128 x 128
    along the second axis, 22 ms and 18."""
    cdef int operation = plan.task.operation
    cdef Py_ssize_t least
    if (is_softmax(operation) and not plan.kernels.streams_more) or (operation == SOFTMAX_GRADIENT and plan.regime == STRIP):
        return False
    if plan.backward_rows and plan.kernels.streams_more:
        return True
    if plan.regime == STRIP and plan.at_once and (is_foreseen(plan) or is_backward(operation) or is_mixture(operation)
                                                  or plan.task.classes > NEAR_CLASSES):
        return False
    if plan.regime == STRIP:
        return min(plan.block_rows, plan.task.shape[plan.task.ndim - 1]) * plan.size >= STREAM_RUN_BYTES
    least = STREAM_FORWARD_BYTES if plan.forward and plan.kernels.streams_more else STREAM_ROW_BYTES
    return (plan.regime == ROWS or plan.backward_rows) and row_bytes >= least


cdef bint leaves_runs(const Plan *plan) noexcept nogil:
    """Whether runs of rows are so few that threads would not have as many each."""
    cdef Py_ssize_t all_runs = plan.task.rows // plan.task.shape[plan.task.ndim - 1]
    cdef int shares = shares_of(plan)
    return all_runs % shares != 0 and all_runs < FEW_ROUNDS * shares


cdef bint is_narrow(const Plan *plan) noexcept nogil:
    """Whether lanes are so few that threads share their tiles: if they shared the lanes, each would write and fetch ahead lines
    that another has."""
    cdef const Task *task = plan.task
    cdef Py_ssize_t across = task.shape[task.ndim - 1]
    return (plan.regime == STRIP and plan.tiles > 1 and plan.tiles >= shares_of(plan)
            and across * plan.size <= min(NARROW_BYTES * plan.tiles, <Py_ssize_t> MOST_NARROW_BYTES) and leaves_runs(plan)
            and across * task.classes >= SHARED_WORK)


cdef bint lie_beside_each_other(const Task *task, const Operand *operand) noexcept nogil:
    """Whether the operand's rows share lines, class by class."""
    return operand.row_strides[task.ndim - 1] == operand.item_bytes and operand.class_stride != operand.item_bytes


cdef bint rows_interleave(const Plan *plan) noexcept nogil:
    """Whether rows are written to the same lines, and short enough to be taken together: log_softmax of 1895 x 12 float32 along
    the first axis takes 25 us so, and with two blocks on two threads 75."""
    cdef const Task *task = plan.task
    return (plan.regime == ROWS and task.classes * plan.size <= FEWER_BYTES and task.out.data != NULL
            and task.shape[task.ndim - 1] <= LINE and lie_beside_each_other(task, &task.out))


cdef bint has_few_lanes(const Plan *plan) noexcept nogil:
    """Whether threads that shared a run would gain less than the lines cost that two of them write, one a class, and its tiles, if
    it has any, are too short too."""
    cdef const Task *task = plan.task
    cdef Py_ssize_t across = task.shape[task.ndim - 1]
    return (plan.regime == STRIP and not plan.at_once and task.out.data != NULL and lie_beside_each_other(task, &task.out)
            and leaves_runs(plan) and across * plan.size <= LEAST_SHARED_BYTES
            and (plan.tiles == 1 or across * task.classes < SHARED_WORK))


cdef void share_tiles(Plan *plan, bint narrow, Py_ssize_t row_work) noexcept nogil:
    """Which blocks threads share tile by tile. Of lanes all if they are narrow, otherwise none. Of rows that a cache holds a few at
    once, or what is left over of more when each thread has had as many as the others: softmax of 3 x 100000 float32 takes 33 us
    so, and row by row 44. Of larger rows a few, each in turn, so that it is read again while a cache holds it."""
    cdef Py_ssize_t left = plan.blocks % plan.threads
    cdef bint few = plan.blocks < FEW_ROUNDS * plan.threads
    cdef bint at_once = plan.regime == ROWS and not plan.beyond
    plan.by_tiles = narrow or (plan.threads > 1 and plan.tiles > 1 and left > 0 and plan.regime == ROWS and not plan.forward
                               and (few or (at_once and plan.blocks <= MOST_PARTS
                                            and left * row_work >= SHARED_WORK * plan.threads)))
    plan.whole = 0 if few or narrow or not plan.by_tiles else plan.blocks - left
    plan.together = plan.blocks - plan.whole if plan.by_tiles and at_once else 1


cdef void set_tiles(Plan *plan) noexcept nogil:
    """Into how many tiles a row is cut, and of how many classes, by the operation, its length and its stride."""
    cdef Py_ssize_t classes = plan.task.classes
    # The last tile has SHORTEST_ROW classes at least.
    plan.tile = (STRIP_TILE_BYTES if plan.regime == STRIP else TILE_BYTES) // plan.size
    while plan.regime == STRIP and classes > MOST_STRIP_TILES * plan.tile and plan.tile < MOST_TILE:
        plan.tile = 2 * plan.tile
    plan.tiles = max(<Py_ssize_t> 1, (classes - SHORTEST_ROW) // plan.tile + 1)
    if plan.tiles == 1:
        plan.tile = classes
    elif plan.tiles <= MOST_EQUAL_TILES:
        plan.tiles += plan.tiles % 2
        plan.tile = (classes + plan.tiles - 1) // plan.tiles
        if plan.regime == ROWS:
            plan.tile = (plan.tile + LINE - 1) // LINE * LINE


cdef void set_kernel(Plan *plan) noexcept nogil:
    """Which kernel reduces and writes a block at once, if one does."""
    cdef const Task *task = plan.task
    plan.backward_rows = (is_backward(task.operation) and plan.regime != STRIP and plan.tiles == 1
                          and task.classes >= SHORTEST_ROW)
    plan.softmax_rows = (plan.regime != STRIP and task.operation == SOFTMAX
                         and SHORTEST_SOFTMAX <= task.classes <= plan.kernels.longest_softmax)
    plan.forward = is_pipelined(plan) and not plan.softmax_rows
    plan.stateless = plan.backward_rows or plan.softmax_rows or (plan.forward and is_forward(task.operation))
    plan.at_once = (plan.stateless or plan.forward or plan.regime == FEW
                    or (plan.regime == STRIP and takes_few_lanes(task)))


cdef Py_ssize_t most_block_rows(const Plan *plan) noexcept nogil:
    """What the caches hold of a block, or what threads have enough of."""
    cdef const Task *task = plan.task
    cdef Py_ssize_t row_bytes = plan.tile * plan.size, block_bytes = ROW_BLOCK_BYTES, many = MANY_BLOCKS, rows
    cdef bint gradient = plan.forward and not plan.stateless
    if plan.regime == FEW:
        return clamp(FEW_BLOCK_BYTES // max(row_bytes, 1) // GROUP * GROUP, GROUP, FEW_ROWS)
    if plan.regime == ROWS:
        if gradient:
            block_bytes = GRADIENT_BLOCK_BYTES
            many = MANY_GRADIENT_BLOCKS
        rows = clamp(block_bytes // row_bytes, 1, MOST_BLOCK_ROWS)
        if plan.tiles > 1:
            rows = LONG_GRADIENT_ROWS if gradient else 1
        while (rows > 1 and rows * row_bytes > FEWER_BYTES and not rows_interleave(plan)
               and task.rows < many * rows):
            rows = rows // 2
        return rows
    # As many lanes as L2 can hold of a tile: long runs, so that a page is read for more than a line or two.
    rows = GRADIENT_LANES if is_backward(task.operation) and task.classes <= SHORT_CLASSES else MOST_LANES
    while rows > LEAST_LANES and (rows * row_bytes > STRIP_BYTES or task.rows < 2 * rows):
        rows = rows // 2
    return rows


cdef void make_plan(Plan *plan, Task *task) noexcept nogil:
    cdef Py_ssize_t across = task.shape[task.ndim - 1], runs = task.shape[task.ndim - 2] if task.ndim > 1 else 1
    cdef Py_ssize_t row_bytes, row_work, moved
    cdef bint interleave, equal, narrow, unmapped
    plan.task = task
    plan.kernels = kernels(task.wide)
    plan.size = 8 if task.wide else 4
    plan.regime = regime_of(task, plan.size)
    row_work = (task.classes + (LANE_WORK if plan.regime == STRIP else ROW_WORK)) * plan.size // 4
    plan.work = task.rows * row_work
    plan.threads = threads_for(plan.work)
    # So is_direct finds rows of several tiles before blocks are chosen.
    plan.span = 1
    plan.run_by_run = False
    set_tiles(plan)
    set_kernel(plan)
    row_bytes = plan.tile * plan.size
    interleave = rows_interleave(plan)
    plan.block_rows = most_block_rows(plan)
    plan.run_by_run = takes_run_by_run(plan)
    plan.blocks_down = blocks_down_of(plan)
    plan.span = (runs + plan.blocks_down - 1) // plan.blocks_down
    narrow = is_narrow(plan)
    if plan.span > 1:
        plan.block_rows = across * plan.span
    elif narrow:
        plan.block_rows = min(across, clamp(STRIP_BYTES // row_bytes // LINE * LINE, LEAST_LANES, MOST_LANES))
    else:
        equal = not interleave and (plan.regime == STRIP or plan.tiles == 1 or plan.forward)
        plan.block_rows = min(equal_rows(plan) if equal else plan.block_rows, across)
    plan.blocks_across = 1 if plan.span > 1 else (across + plan.block_rows - 1) // plan.block_rows
    plan.past_line = past_line_of(plan)
    plan.blocks = task.rows // (across * runs) * plan.blocks_down * plan.blocks_across
    plan.x_direct = is_direct(plan, &task.x)
    plan.y_direct = task.y.data != NULL and is_direct(plan, &task.y)
    plan.out_direct = task.out.data != NULL and is_direct(plan, &task.out)
    moved = (1 + (task.y.data != NULL) + (task.out.data != NULL)) * task.rows * task.classes * plan.size
    plan.far = moved >= last_level_cache_bytes // 2
    plan.beyond = moved >= last_level_cache_bytes
    share_tiles(plan, narrow and plan.threads > 1, row_work)
    if plan.by_tiles and plan.whole == 0:
        # Threads that share a row wait for each other after each phase: softmax of 1 x 26000 float32 takes 4.9 us on one, and
        # would take 6.7 on two; of 1 x 33000 5.6 on two, and 5.9 on one.
        plan.threads = threads_for(plan.work * 2 // 3)
        share_tiles(plan, narrow and plan.threads > 1, row_work)
    # Memory that the system hands out during the call it has just filled with zeros, by way of the caches, where they still lie.
    unmapped = task.fresh and task.rows * task.classes * plan.size >= UNMAPPED_BYTES
    plan.stream = plan.out_direct and not task.in_place and not unmapped and plan.beyond and streams(plan, row_bytes)
    if plan.forward and plan.stateless and plan.span == 1 and plan.x_direct and plan.out_direct:
        # All that a thread has: one batch is written while the next is added up.
        plan.block_rows = max(plan.block_rows, (across + plan.threads - 1) // plan.threads)
        plan.blocks_across = (across + plan.block_rows - 1) // plan.block_rows
        plan.blocks = task.rows // across * plan.blocks_across
    plan.most_rows = plan.block_rows + plan.past_line
    plan.kept = (not plan.at_once and is_softmax(task.operation)
                 and (plan.tiles == 1 or (plan.out_direct and not plan.stream)
                      or (plan.stream and plan.regime == ROWS and not plan.by_tiles
                          and task.classes * plan.size <= KEPT_BYTES)))
    plan.ask_early = (plan.regime == ROWS and plan.out_direct and not plan.stream
                      and task.classes * plan.size <= KEPT_BYTES)
    task.blocks_per_part = (plan.blocks + MOST_PARTS - 1) // MOST_PARTS
    if interleave or has_few_lanes(plan):
        # No two threads write to the same run.
        task.blocks_per_part = (task.blocks_per_part + plan.blocks_across - 1) // plan.blocks_across * plan.blocks_across
    task.parts = (plan.blocks + task.blocks_per_part - 1) // task.blocks_per_part if plan.blocks > 0 else 0


cdef void *take(char *base, Py_ssize_t *used, Py_ssize_t size) noexcept nogil:
    """The next `size` bytes of the scratch; lines apart, so that arrays of equal sizes do not share cache sets."""
    cdef Py_ssize_t at = used[0]
    used[0] += (size + 63) // 64 * 64 + 192
    return base + at if base != NULL else NULL


cdef Py_ssize_t out_bytes(const Plan *plan, Py_ssize_t piece) noexcept nogil:
    """Scratch for what is not written to out, or not at once: results of which a piece is stored, or exps."""
    cdef bint softmax = is_softmax(plan.task.operation)
    if not plan.out_direct:
        return piece
    if plan.forward and plan.stream and softmax:
        return forward_scratch(plan.task.classes * plan.size)
    if plan.kept and plan.stream and plan.tiles > 1:
        return plan.most_rows * plan.task.classes * plan.size
    return piece if softmax and not plan.at_once and not (plan.kept and not plan.stream) else 0


cdef inline Py_ssize_t merged_entry(const Plan *plan, Py_ssize_t rows) noexcept nogil:
    """Where the entries of a block's rows begin, behind those of its tiles; forward_rows takes one row's tiles at a time."""
    return 0 if plan.tiles == 1 else plan.tiles if plan.forward else plan.tiles * rows


cdef Py_ssize_t lay_out(const Plan *plan, char *base, Worker *worker) noexcept nogil:
    """Points a worker into its scratch; returns how much it needs."""
    cdef Worker measured
    cdef Py_ssize_t used = 0
    # Kernels of short rows work on whole groups; merged entries follow the tiles'.
    cdef Py_ssize_t rows = 0 if plan.stateless and plan.tiles == 1 else plan.most_rows + GROUP
    cdef Py_ssize_t entries = (rows + merged_entry(plan, plan.most_rows)) * plan.size
    cdef Py_ssize_t piece = plan.most_rows * (plan.tile + SHORTEST_ROW) * plan.size
    cdef const Task *task = plan.task
    if worker == NULL:
        worker = &measured
    worker.block.state.top = take(base, &used, entries)
    worker.block.state.ties = take(base, &used, entries)
    worker.block.state.rest = take(base, &used, entries)
    worker.block.state.carry = take(base, &used, entries)
    if task.operation != SOFTMAX:
        worker.block.state.log_sum = take(base, &used, entries)
        worker.block.state.log_low = take(base, &used, entries)
    else:
        worker.block.state.log_sum = worker.block.state.log_low = NULL
    worker.block.state.others = take(base, &used, entries)
    worker.block.state.scale = take(base, &used, entries)
    worker.block.state.mass = take(base, &used, entries if task.operation >= MIXTURE_COST else 0)
    worker.block.state.mass_carry = take(base, &used, entries if task.operation >= MIXTURE_COST else 0)
    worker.block.state.cost = take(base, &used, entries if task.operation >= MIXTURE_COST else 0)
    worker.block.factor = take(base, &used, rows * plan.size)
    worker.block.scratch = <char *> take(base, &used, plan.most_rows * task.row_scratch)
    worker.x_piece = take(base, &used, 0 if plan.x_direct else piece)
    worker.y_piece = take(base, &used, 0 if plan.y_direct or (task.y.data == NULL and task.fill_y == NULL) else piece)
    worker.out_piece = take(base, &used, out_bytes(plan, piece))
    worker.transposed = take(base, &used, 3 * SCRATCH * plan.size
                             if plan.at_once and not plan.stateless and not plan.forward else 0)
    return used


# ---- one block, one tile -----------------------------------------------------------------------------------------

cdef inline Py_ssize_t tile_length(const Plan *plan, Py_ssize_t t) noexcept nogil:
    return plan.tile if t < plan.tiles - 1 else plan.task.classes - t * plan.tile


cdef const void *piece_of(const Plan *plan, const Operand *operand, bint direct, const Block *block, Py_ssize_t t,
                          void *piece, Py_ssize_t *step) noexcept nogil:
    """Tile t of the block's rows as a kernel wants it: where it lies, or copied to `piece`."""
    cdef Py_ssize_t classes = tile_length(plan, t)
    cdef Py_ssize_t along = row_stride(plan, operand), down = run_stride(plan.task, operand), i
    cdef const char *data = row_of(plan.task, operand, block) + t * plan.tile * operand.class_stride
    if direct:
        step[0] = (operand.class_stride if plan.regime == STRIP else along) // plan.size
        return data
    step[0] = block.rows if plan.regime == STRIP else classes
    for i in range(block.rows // block.run):
        if plan.regime == STRIP:
            plan.kernels.load(operand.element, operand.swapped, data, operand.class_stride, along, classes, block.run,
                              <char *> piece + i * block.run * plan.size, step[0])
        else:
            plan.kernels.load(operand.element, operand.swapped, data, along, operand.class_stride, block.run, classes,
                              <char *> piece + i * block.run * step[0] * plan.size, step[0])
        data += down
    return piece


cdef const void *y_of(const Plan *plan, Worker *worker, Block *block, Py_ssize_t t, Py_ssize_t *step) noexcept nogil:
    cdef Py_ssize_t classes = tile_length(plan, t)
    if plan.task.fill_y != NULL:
        step[0] = block.rows if plan.regime == STRIP else classes
        plan.task.fill_y(plan.task, block, t * plan.tile, classes, plan.regime == STRIP, worker.y_piece, step[0])
        return worker.y_piece
    return piece_of(plan, &plan.task.y, plan.y_direct, block, t, worker.y_piece, step)


cdef inline bint has_y(const Task *task) noexcept nogil:
    return task.y.data != NULL or task.fill_y != NULL


cdef void store_piece(const Plan *plan, const Block *block, Py_ssize_t t, const void *piece) noexcept nogil:
    cdef const Operand *out = &plan.task.out
    cdef Py_ssize_t classes = tile_length(plan, t), down = run_stride(plan.task, out), i
    cdef char *data = row_of(plan.task, out, block) + t * plan.tile * out.class_stride
    for i in range(block.rows // block.run):
        if plan.regime == STRIP:
            plan.kernels.store(out.element, <const char *> piece + i * block.run * plan.size, block.rows, classes, block.run,
                               data, out.class_stride, row_stride(plan, out))
        else:
            plan.kernels.store(out.element, <const char *> piece + i * block.run * classes * plan.size, classes, block.run,
                               classes, data, row_stride(plan, out), out.class_stride)
        data += down


cdef void *out_of(const Plan *plan, const Block *block, Py_ssize_t t, Py_ssize_t *step) noexcept nogil:
    """Tile t of the block's rows of out, where a kernel can write it."""
    cdef const Operand *out = &plan.task.out
    step[0] = (out.class_stride if plan.regime == STRIP else row_stride(plan, out)) // plan.size
    return row_of(plan.task, out, block) + t * plan.tile * out.class_stride


cdef void *exps_of(const Plan *plan, Worker *worker, const Block *block, Py_ssize_t t, Py_ssize_t *step) noexcept nogil:
    """Where the exps of tile t are written, and read again if they are kept."""
    if plan.kept and plan.out_direct and not plan.stream:
        return out_of(plan, block, t, step)
    step[0] = block.rows if plan.regime == STRIP else tile_length(plan, t)
    return <char *> worker.out_piece + (t * plan.tile * block.rows * plan.size if plan.kept else 0)


cdef inline Py_ssize_t run_step(const Plan *plan, const Operand *operand, bint direct, const Block *block) noexcept nogil:
    """Bytes from a run to the next, where it lies or in its piece."""
    return run_stride(plan.task, operand) if direct else block.run * plan.size


cdef inline Py_ssize_t run_of(const Plan *plan, const Block *block) noexcept nogil:
    """So many lanes a kernel takes at a time."""
    return block.run if plan.run_by_run else block.rows


cdef inline Py_ssize_t exps_run_step(const Plan *plan, const Block *block) noexcept nogil:
    return run_step(plan, &plan.task.out, plan.kept and plan.out_direct and not plan.stream, block)


cdef int following_of(const Plan *plan, const Block *block, Py_ssize_t t) noexcept nogil:
    """What is read after a tile, and may be asked for: of lanes only where no cache has it, of rows where no other thread may be
    writing it, the result behind the last row of x or, in place, the next thread's rows. Softmax of 1 x 50000 float32 takes
    20 us so where out lies behind x, and otherwise 28."""
    cdef const Task *task = plan.task
    cdef Py_ssize_t across = task.shape[task.ndim - 1]
    cdef bint shared = task.in_place and plan.threads > 1
    if plan.regime == STRIP:
        if not plan.beyond:
            return NOTHING
        if t + 1 < plan.tiles:
            return TILE_BELOW
        return BLOCK_BESIDE if plan.tiles == 1 and block.first + 2 * plan.block_rows <= across else NOTHING
    if not plan.x_direct:
        return NOTHING
    if t + 1 < plan.tiles:
        return NOTHING if shared and plan.by_tiles else TILE_BELOW
    return NOTHING if shared or block.outer * across + block.first + block.rows >= task.rows else BLOCK_BESIDE


cdef void reduce_tile(const Plan *plan, Worker *worker, Block *block, Py_ssize_t t, int operation) noexcept nogil:
    cdef Py_ssize_t x_step, y_step = 0, exps_step = 0, x_run, y_run, exps_run, run, i
    cdef const void *x = piece_of(plan, &plan.task.x, plan.x_direct, block, t, worker.x_piece, &x_step)
    cdef const void *y = x
    cdef void *exps = NULL
    cdef int following = following_of(plan, block, t)
    cdef bint two = has_y(plan.task) and operation != LOGSUMEXP
    if two:
        y = y_of(plan, worker, block, t, &y_step)
    if is_softmax(operation):
        exps = exps_of(plan, worker, block, t, &exps_step)
    elif plan.ask_early and operation != MIXTURE_COST:
        exps = out_of(plan, block, t, &exps_step)
    if plan.regime == STRIP:
        x_run = run_step(plan, &plan.task.x, plan.x_direct, block)
        y_run = run_step(plan, &plan.task.y, plan.y_direct, block) if two else x_run
        exps_run = exps_run_step(plan, block) if exps != NULL else 0
        run = run_of(plan, block)
        for i in range(block.rows // run):
            plan.kernels.reduce_strip(operation, <const char *> x + i * x_run, x_step, <const char *> y + i * y_run, y_step, run,
                                      tile_length(plan, t), &block.state, t * block.rows + i * run,
                                      <char *> exps + i * exps_run, exps_step, following)
    else:
        plan.kernels.reduce_rows(operation, x, x_step, y, y_step, block.rows, tile_length(plan, t), &block.state,
                                 t * block.rows, exps, exps_step, following)


cdef void apply_tile(const Plan *plan, Worker *worker, Block *block, Py_ssize_t t) noexcept nogil:
    cdef const Task *task = plan.task
    cdef Py_ssize_t x_step, y_step = 0, out_step, x_run, y_run, out_run, run, i
    cdef const void *x
    cdef const void *y
    cdef void *out
    # exps are relative to their tile's own top.
    cdef Py_ssize_t first = t * block.rows if is_softmax(task.operation) else block.merged
    if plan.kept:
        x = exps_of(plan, worker, block, t, &x_step)
    elif plan.tiles == 1 and not plan.x_direct:
        # As it was loaded to be reduced.
        x = worker.x_piece
        x_step = block.rows if plan.regime == STRIP else task.classes
    else:
        x = piece_of(plan, &task.x, plan.x_direct, block, t, worker.x_piece, &x_step)
    y = y_of(plan, worker, block, t, &y_step) if has_y(task) else x
    if plan.out_direct:
        out = out_of(plan, block, t, &out_step)
    else:
        out_step = block.rows if plan.regime == STRIP else tile_length(plan, t)
        out = worker.out_piece
    if plan.regime == STRIP:
        x_run = exps_run_step(plan, block) if plan.kept else run_step(plan, &task.x, plan.x_direct, block)
        y_run = run_step(plan, &task.y, plan.y_direct, block) if has_y(task) else x_run
        out_run = run_step(plan, &task.out, plan.out_direct, block)
        run = run_of(plan, block)
        for i in range(block.rows // run):
            plan.kernels.apply_strip(task.operation, plan.kept, <const char *> x + i * x_run, x_step,
                                     <const char *> y + i * y_run, y_step, run, tile_length(plan, t), &block.state,
                                     first + i * run, <char *> block.factor + i * run * plan.size,
                                     <char *> out + i * out_run, out_step, plan.beyond and plan.tiles > 1, plan.stream)
    else:
        plan.kernels.apply_rows(task.operation, plan.kept, x, x_step, y, y_step, block.rows, tile_length(plan, t),
                                &block.state, first, block.factor, out, out_step, plan.far, plan.stream)
    if not plan.out_direct:
        store_piece(plan, block, t, out)


cdef void all_at_once(const Plan *plan, Worker *worker, Block *block) noexcept nogil:
    """Everything in one kernel: a block of few classes, or of rows of softmax, its gradient, log_softmax or a backward operation."""
    cdef const Task *task = plan.task
    cdef Py_ssize_t x_step, y_step = 0, out_step = 0
    cdef const void *x = piece_of(plan, &task.x, plan.x_direct, block, 0, worker.x_piece, &x_step)
    cdef const void *y = y_of(plan, worker, block, 0, &y_step) if has_y(task) else x
    cdef void *out = NULL
    cdef Py_ssize_t run, x_run, y_run, out_run
    if plan.out_direct:
        out = out_of(plan, block, 0, &out_step)
    elif task.out.data != NULL:
        out = worker.out_piece
        out_step = block.rows if plan.regime == STRIP else task.classes
    if plan.softmax_rows:
        plan.kernels.softmax_rows(x, x_step, block.rows, task.classes, out, out_step, plan.far)
    elif plan.forward:
        plan.kernels.forward_rows(task.operation, x, x_step, block.rows, task.classes, plan.tile, &block.state,
                                  block.factor if task.has_factor else NULL, out, out_step, worker.out_piece, plan.far,
                                  plan.stream)
    elif plan.backward_rows:
        plan.kernels.backward_rows(task.operation, x, x_step, y, y_step, block.rows, task.classes, out, out_step, plan.far,
                                   plan.stream)
    elif plan.regime == STRIP:
        run = run_of(plan, block)
        x_run = run_step(plan, &task.x, plan.x_direct, block) // plan.size
        y_run = run_step(plan, &task.y, plan.y_direct, block) // plan.size if has_y(task) else x_run
        out_run = run_step(plan, &task.out, plan.out_direct, block) // plan.size if out != NULL else 0
        plan.kernels.few_strip(task.operation, x, x_step, x_run, y, y_step, y_run, run, block.rows // run, task.classes,
                               &block.state, block.factor if task.has_factor else NULL, out, out_step, out_run,
                               worker.transposed, plan.far and not is_foreseen(plan), plan.stream)
    else:
        plan.kernels.few_rows(task.operation, x, x_step, y, y_step, block.rows, task.classes, &block.state,
                              block.factor if task.has_factor else NULL, out, out_step, worker.transposed)
    if task.out.data != NULL and not plan.out_direct:
        store_piece(plan, block, 0, out)


cdef void merge_tiles(const Plan *plan, Block *block, int operation) noexcept nogil:
    if plan.tiles > 1:
        plan.kernels.merge(operation, &block.state, block.state.top, block.rows, plan.tiles, block.merged)


cdef void tile_job(void *context, int thread, Py_ssize_t index) noexcept nogil:
    """One phase of one tile of the blocks whose tiles are being shared."""
    cdef Plan *plan = <Plan *> context
    cdef Block *block = &plan.workers[index // plan.tiles].block
    if plan.phase == APPLY:
        apply_tile(plan, &plan.workers[thread], block, index % plan.tiles)
        if plan.stream:
            stream_fence()
    else:
        reduce_tile(plan, &plan.workers[thread], block, index % plan.tiles, plan.phase)


cdef void all_tiles(Plan *plan, Worker *worker, Py_ssize_t blocks, int phase, bint shared) noexcept nogil:
    """One phase of the block's tiles, by this thread alone, or of several blocks', shared."""
    cdef Py_ssize_t t
    if shared:
        plan.phase = phase
        share(&tile_job, plan, blocks * plan.tiles, plan.work, plan.threads)
    elif phase == APPLY:
        for t in range(plan.tiles):
            apply_tile(plan, worker, &worker.block, t)
    else:
        for t in range(plan.tiles):
            reduce_tile(plan, worker, &worker.block, t, phase)


cdef void open_block(const Plan *plan, Block *block, Py_ssize_t index) noexcept nogil:
    cdef Task *task = plan.task
    cdef Py_ssize_t across = task.shape[task.ndim - 1], runs = task.shape[task.ndim - 2] if task.ndim > 1 else 1, first, end
    block.part = index // task.blocks_per_part
    block.first = index % plan.blocks_across * plan.block_rows
    block.outer = index // plan.blocks_across
    block.rows = min(plan.block_rows, across - block.first)
    if plan.past_line > 0:
        end = across if block.first + plan.block_rows >= across else block.first + plan.block_rows - plan.past_line
        block.first = max(<Py_ssize_t> 0, block.first - plan.past_line)
        block.rows = end - block.first
    if plan.span > 1:
        first = block.outer % plan.blocks_down * runs // plan.blocks_down
        end = (block.outer % plan.blocks_down + 1) * runs // plan.blocks_down
        block.outer = block.outer // plan.blocks_down * runs + first
        block.rows = (end - first) * across
    block.run = across if plan.span > 1 else block.rows
    block.merged = merged_entry(plan, block.rows)
    if task.open != NULL:
        task.open(task, block)


cdef void close_block(const Plan *plan, Block *block) noexcept nogil:
    if plan.task.close != NULL:
        if plan.stream:
            stream_fence()
        plan.task.close(plan.task, block)


cdef void finish_block(const Plan *plan, Block *block) noexcept nogil:
    """What lies between a block's reduction and its writing, or a mixture's second reduction."""
    cdef Task *task = plan.task
    cdef Py_ssize_t t
    merge_tiles(plan, block, reduction_of(task.operation))
    plan.kernels.finish(task.operation, &block.state, block.merged, block.rows, block.factor if task.has_factor else NULL)
    if is_mixture(task.operation):
        for t in range(plan.tiles if plan.tiles > 1 else 0):
            memcpy(<char *> block.state.top + t * block.rows * plan.size,
                   <char *> block.state.top + block.merged * plan.size, block.rows * plan.size)
    elif plan.tiles > 1 and is_softmax(task.operation):
        plan.kernels.spread(&block.state, block.state.top, block.rows, plan.tiles, block.merged)


cdef void compute_blocks(Plan *plan, Worker *worker, Py_ssize_t first, Py_ssize_t count, bint shared) noexcept nogil:
    """Block `first`, or where threads share tiles, it and those that follow, each in a worker of its own."""
    cdef Task *task = plan.task
    cdef Py_ssize_t i
    for i in range(count):
        open_block(plan, &worker[i].block, first + i)
    if plan.at_once:
        all_at_once(plan, worker, &worker.block)
    else:
        all_tiles(plan, worker, count, reduction_of(task.operation), shared)
        for i in range(count):
            finish_block(plan, &worker[i].block)
        if is_mixture(task.operation):
            all_tiles(plan, worker, count, MIXTURE_COST, shared)
            for i in range(count):
                merge_tiles(plan, &worker[i].block, MIXTURE_COST)
        if task.out.data != NULL:
            all_tiles(plan, worker, count, APPLY, shared)
    for i in range(count):
        close_block(plan, &worker[i].block)


cdef void part_job(void *context, int thread, Py_ssize_t part) noexcept nogil:
    cdef Plan *plan = <Plan *> context
    cdef Py_ssize_t index, first = part * plan.task.blocks_per_part
    for index in range(first, min(first + plan.task.blocks_per_part, plan.blocks)):
        compute_blocks(plan, &plan.workers[thread], index, 1, False)
    if plan.stream:
        stream_fence()


# ---- threads -----------------------------------------------------------------------------------------------------

cdef void part_of_share(job each, void *context, Py_ssize_t count, int thread, int part, int parts) noexcept nogil:
    cdef Py_ssize_t i, least = count // parts, more = count % parts
    cdef Py_ssize_t first = part * least + min(<Py_ssize_t> part, more)
    for i in range(first, first + least + (part < more)):
        each(context, thread, i)


cdef void share(job each, void *context, Py_ssize_t count, Py_ssize_t work, int threads) noexcept nogil:
    cdef int part
    cdef double begun
    cdef double done[2]
    if threads > 1:
        begun = begin_region()
        for part in prange(threads, schedule="static", num_threads=threads):
            part_of_share(each, context, count, threadid(), part, threads)
            if begun > 0 and (part == 0 or part == threads - 1):
                done[part > 0] = now()
        if begun > 0:
            note_region(begun, min(done[0], done[1]), work, threads)
    else:
        part_of_share(each, context, count, 0, 0, 1)


cdef void share_work(job each, void *context, Py_ssize_t count, Py_ssize_t work) noexcept nogil:
    cdef int threads = threads_for(work)
    cdef bint entered = enter(work)
    # A row that is only looked up, not computed, is waited for.
    share(each, context, count, work * ROW_WORK, threads)
    leave(entered)


cdef int run(Task *task) except -1:
    cdef Plan plan
    cdef bint entered
    cdef int i, workers
    cdef Py_ssize_t index, worker_bytes
    cdef char *scratch
    make_plan(&plan, task)
    if plan.blocks == 0:
        return 0
    if not plan.by_tiles:
        plan.threads = <int> min(<Py_ssize_t> plan.threads, task.parts)
    workers = max(plan.threads, <int> plan.together)
    worker_bytes = sizeof(Worker) + lay_out(&plan, NULL, NULL)
    plan.workers = <Worker *> malloc(workers * worker_bytes + 64)
    if plan.workers == NULL:
        raise MemoryError(f"cylsm could not allocate {workers * worker_bytes} bytes of scratch memory")
    with nogil:
        entered = enter(plan.work)
        scratch = <char *> (plan.workers + workers)
        scratch += 64 - <size_t> scratch % 64
        for i in range(workers):
            scratch += lay_out(&plan, scratch, &plan.workers[i])
        if plan.by_tiles:
            # So few that a share has one block.
            if plan.whole > 0:
                share(&part_job, &plan, plan.whole, plan.work, plan.threads)
            for index in range((plan.blocks - plan.whole) // plan.together):
                compute_blocks(&plan, plan.workers, plan.whole + index * plan.together, plan.together, True)
        else:
            share(&part_job, &plan, task.parts, plan.work, plan.threads)
        leave(entered)
    free(plan.workers)
    return 0
