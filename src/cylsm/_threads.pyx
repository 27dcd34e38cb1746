"""How many threads a call uses; the only file that talks to OpenMP's runtime."""

import operator
import os

cdef extern from *:
    """
    #ifdef _OPENMP
    #include <omp.h>
    #define CYLSM_OPENMP 1
    #else
    #define CYLSM_OPENMP 0
    static int omp_get_max_threads(void) { return 1; }
    static double omp_get_wtime(void) { return 0; }
    #endif

    /* Where OpenMP spreads its threads over places (OMP_PROC_BIND, GOMP_CPU_AFFINITY), the calling one may have a single
       processor, and it is the places' processors that count; 0 where threads are free, or all in one place. */
    static int cylsm_places(void)
    {
        int sum = 0;
    #if defined(_OPENMP) && _OPENMP >= 201511
        int place;
        if (omp_get_proc_bind() != omp_proc_bind_false && omp_get_proc_bind() != omp_proc_bind_master)
            for (place = 0; place < omp_get_num_places(); place++)
                sum += omp_get_place_num_procs(place);
    #endif
        return sum;
    }

    /* Before OpenMP 3.1 (MSVC's) a read or write of a volatile number is as whole as it gets. */
    #if defined(_OPENMP) && _OPENMP >= 201107
    #define CYLSM_WHOLE(action) _Pragma(#action)
    #else
    #define CYLSM_WHOLE(action)
    #endif

    /* Large calls under way in all Python threads; how many there were when there last were several, and when that was. */
    static volatile int cylsm_calls, cylsm_crowd;
    static volatile double cylsm_crowd_time;

    static void cylsm_add_call(int change)
    {
    #ifdef _OPENMP
    #pragma omp atomic
    #endif
        cylsm_calls += change;
    }

    /* Some runtimes' time is that of the system's clock, which can be set back. */
    static int cylsm_is_within(double seconds, double most) { return seconds >= 0 && seconds < most; }

    /* Calls that share the processors, with one that is not under way yet. A crowd counts for CYLSM_LATELY seconds more: between
       two calls a Python thread has none under way, and a thread that another woke then would wait for a processor. */
    #define CYLSM_LATELY 5e-3
    static int cylsm_count_calls(void)
    {
        int others, crowd;
        double time;
        CYLSM_WHOLE(omp atomic read)
        others = cylsm_calls;
        CYLSM_WHOLE(omp atomic read)
        crowd = cylsm_crowd;
        if (others <= 0 && crowd <= 1)
            return 1;
        CYLSM_WHOLE(omp atomic read)
        time = cylsm_crowd_time;
        if (others <= 0 && cylsm_is_within(omp_get_wtime() - time, CYLSM_LATELY))
            return crowd;
        crowd = others > 0 ? others + 1 : 1;
        time = omp_get_wtime();
        CYLSM_WHOLE(omp atomic write)
        cylsm_crowd_time = time;
        CYLSM_WHOLE(omp atomic write)
        cylsm_crowd = crowd;
        return crowd;
    }

    /* By how much calls have lately waited longer for their threads than these saved; when their last region ended; until when
       they do without threads, if not 0, and for how long they do. */
    static volatile double cylsm_lost, cylsm_last_end, cylsm_alone, cylsm_pause;

    /* Where another process has a processor too, one thread is late by a time slice or two, and the others spin. A thread that
       slept is late anywhere, which says nothing. The first that is done may have been late itself, so that what threads save
       is bounded by what so many elements take, in memory. Two processes of two threads on two processors take 0.5 to 0.9 ms a
       call for softmax of 1000 x 1000 float32 so, 0.8 to 12 without, and 0.45 with one thread each. */
    #define CYLSM_MOST_LOST 10e-3
    #define CYLSM_AWAKE 1e-3
    #define CYLSM_ELEMENT 1e-9
    #define CYLSM_LEAST_PAUSE 10e-3
    #define CYLSM_MOST_PAUSE 640e-3

    /* The time, if a region that begins now is to be timed, else 0. Until there was a pause it is two of sixteen, the second of
       which knows when the first ended: calls of 7 to 20 us take 0.4 % longer so, and 3 % if all are timed. */
    static double cylsm_begin_region(void)
    {
        static volatile unsigned regions;
        unsigned region;
        double pause;
        CYLSM_WHOLE(omp atomic read)
        pause = cylsm_pause;
        CYLSM_WHOLE(omp atomic capture)
        region = regions++;
        return pause > 0 || region % 16 < 2 ? omp_get_wtime() : 0;
    }

    /* The seconds of the pause that begins, if one does. */
    static double cylsm_note_region(double begun, double done, double end, double work, int threads)
    {
        int begins = 0;
        double last, lost, pause, saved = (threads - 1) * (done - begun);
        CYLSM_WHOLE(omp atomic read)
        last = cylsm_last_end;
        CYLSM_WHOLE(omp atomic write)
        cylsm_last_end = end;
        if (!cylsm_is_within(begun - last, CYLSM_AWAKE))
            return 0;
        CYLSM_WHOLE(omp atomic read)
        lost = cylsm_lost;
        CYLSM_WHOLE(omp atomic read)
        pause = cylsm_pause;
        lost += end - done - (saved < work * CYLSM_ELEMENT ? saved : work * CYLSM_ELEMENT);
        if (lost > CYLSM_MOST_LOST) {
            begins = 1;
            lost = CYLSM_MOST_LOST / 2;
            pause = pause == 0 ? CYLSM_LEAST_PAUSE : pause < CYLSM_MOST_PAUSE ? 2 * pause : pause;
            CYLSM_WHOLE(omp atomic write)
            cylsm_alone = end + pause;
        } else if (lost <= 0)
            lost = pause = 0;
        CYLSM_WHOLE(omp atomic write)
        cylsm_lost = lost;
        CYLSM_WHOLE(omp atomic write)
        cylsm_pause = pause;
        return begins ? pause : 0;
    }

    static void cylsm_forget_regions(void)
    {
        CYLSM_WHOLE(omp atomic write)
        cylsm_lost = 0;
        CYLSM_WHOLE(omp atomic write)
        cylsm_pause = 0;
        CYLSM_WHOLE(omp atomic write)
        cylsm_alone = 0;
        CYLSM_WHOLE(omp atomic write)
        cylsm_last_end = omp_get_wtime();
    }

    static int cylsm_is_alone(void)
    {
        double alone;
        CYLSM_WHOLE(omp atomic read)
        alone = cylsm_alone;
        if (alone == 0 || cylsm_is_within(alone - omp_get_wtime(), CYLSM_MOST_PAUSE))
            return alone != 0;
        CYLSM_WHOLE(omp atomic write)
        cylsm_alone = 0;
        return 0;
    }

    #if defined(__linux__)
    #include <sched.h>
    /* More processors than the fixed-size set has room for: not a limit. */
    static int cylsm_processors(void)
    {
        cpu_set_t set;
        return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 0;
    }
    #else
    static int cylsm_processors(void) { return 0; }
    #endif

    /* GNU OpenMP's pool does not survive a fork: a parallel region in the child would hang. */
    static volatile int cylsm_forked = 0;
    #if defined(_WIN32)
    static void cylsm_watch_forks(void) {}
    #else
    #include <pthread.h>
    static void cylsm_note_fork(void) { cylsm_forked = 1; }
    static void cylsm_watch_forks(void) { pthread_atfork(NULL, NULL, cylsm_note_fork); }
    #endif
    """
    const bint CYLSM_OPENMP
    int omp_get_max_threads() nogil
    int cylsm_places()
    int cylsm_processors() nogil
    void cylsm_add_call(int change) nogil
    int cylsm_count_calls() nogil
    double omp_get_wtime() nogil
    double cylsm_begin_region() nogil
    double cylsm_note_region(double begun, double done, double end, double work, int threads) nogil
    void cylsm_forget_regions() nogil
    bint cylsm_is_alone() nogil
    double cylsm_last_end
    int cylsm_forked
    void cylsm_watch_forks()

cdef enum:
    # Elements that a thread must have to be worth waking. Beside libraries whose threads spin, two take 3.9 us instead of 4.5 for
    # log_softmax_backward of 512 x 32 float32, which counts as 20,480, and 4.5 instead of 5.0 of 900 x 16; of 64 x 256 along
    # the first axis, 16,896, they would take 4.3 instead of 4.0.
    GRAIN = 9216

cdef int chosen = 0     # set_num_threads; 0: no limit
cdef int granted        # by the control group's quota, and all the processors where affinity is unknown
cdef int pretended = 0  # _pretend_processors
cdef int places         # processors that OpenMP binds its threads to, which it decides once; 0: it binds none


def cgroup_processors():
    """Processors that this process's control group may use, rounded up; None where there is no quota."""
    quotas = []
    try:
        paths = [line.split(":", 2)[2] for line in open_text("/proc/self/cgroup").splitlines()]
    except (OSError, IndexError):
        paths = []
    for path in {"/", *paths}:
        parts = [part for part in path.split("/") if part and part != ".."]
        for depth in range(len(parts) + 1):
            below = "/".join(parts[:depth])
            for names in ((f"/sys/fs/cgroup/{below}/cpu.max",),
                          (f"/sys/fs/cgroup/cpu/{below}/cpu.cfs_quota_us", f"/sys/fs/cgroup/cpu/{below}/cpu.cfs_period_us")):
                try:
                    words = " ".join(open_text(name) for name in names).split()
                    quota, period = int(words[0]), int(words[1])
                except (OSError, ValueError, IndexError):
                    continue
                if quota > 0 and period > 0:
                    quotas.append(max(1, -(-quota // period)))
    return min(quotas, default=None)


def open_text(name):
    with open(name) as file:
        return file.read()


granted = min(os.cpu_count() or 1, cgroup_processors() or 1 << 20)
places = cylsm_places()
cylsm_watch_forks()


def granted_processors():
    """How many processors the machine has, or fewer by the control group's quota."""
    return granted


cdef int most_threads(int calls) noexcept nogil:
    """Of one call, where so many share the processors."""
    cdef int limit, bound, processors = granted
    if cylsm_forked:
        return 1
    limit = pretended if pretended > 0 else omp_get_max_threads()
    if chosen > 0:
        limit = min(limit, chosen)
    if pretended > 0:
        processors = pretended
    elif limit > 1 and granted > 1:
        bound = places if places > 0 else cylsm_processors()
        if bound > 0:
            processors = min(processors, bound)
    return max(min(limit, processors // calls), 1)


def _pretend_processors(n):
    """Let calls use up to n threads, however few processors there are, or (0) as many as there are, and whatever waiting for them
    has cost; for tests only."""
    global pretended
    pretended = n if CYLSM_OPENMP else 0
    cylsm_forget_regions()


cdef int threads_for(Py_ssize_t work) noexcept nogil:
    """Number of threads for the work of so many float32 elements, a fair share of the processors where other Python threads
    call too. Softmax of 256 x 1000 float32 from two of them takes 24 us a call so, and if each takes both processors 32."""
    if work < 2 * GRAIN or cylsm_is_alone():
        return 1
    return <int> min(<Py_ssize_t> most_threads(cylsm_count_calls()), work // GRAIN)


def _threads_for(work):
    """For tests only."""
    return threads_for(work)


cdef bint enter(Py_ssize_t work) noexcept nogil:
    """Count a call among those under way, if it is large enough for two threads."""
    cdef bint large = work >= 2 * GRAIN
    if large:
        cylsm_add_call(1)
    return large


cdef void leave(bint entered) noexcept nogil:
    if entered:
        cylsm_add_call(-1)


cdef double begin_region() noexcept nogil:
    return cylsm_begin_region() if pretended == 0 else 0


cdef double now() noexcept nogil:
    return omp_get_wtime()


cdef void note_region(double begun, double done, Py_ssize_t work, int threads) noexcept nogil:
    cylsm_note_region(begun, done, omp_get_wtime(), work, threads)


def _note_region(worked, waited, work, slept=0):
    """As if, so many seconds after the last region, two threads had begun so much work, one ending it `waited` seconds after the
    other. Returns how long the pause is that begins, 0 if none does; for tests only."""
    begun = cylsm_last_end + slept
    return cylsm_note_region(begun, begun + worked, begun + worked + waited, work, 2)


def set_num_threads(n):
    """Limit the number of threads that calls use from now on, in every Python thread.

    Parameters
    ----------
    n : int or None
        The largest number of threads of one call, at least 1; None takes the limit away. OpenMP's own limit
        (``OMP_NUM_THREADS``, threadpoolctl), the processors this process may use, and the size of the call limit it
        further.

    Raises
    ------
    TypeError
        If `n` is not an integer.
    ValueError
        If `n` is less than 1.

    See Also
    --------
    get_num_threads : the number of threads that a large call would use.

    Examples
    --------
    >>> import cylsm
    >>> cylsm.set_num_threads(1)
    >>> cylsm.get_num_threads()
    1
    >>> cylsm.set_num_threads(None)
    """
    global chosen
    if n is None:
        chosen = 0
        return
    if isinstance(n, bool):
        raise TypeError(f"n must be an integer or None, not {n!r}")
    try:
        count = operator.index(n)
    except TypeError:
        raise TypeError(f"n must be an integer or None, not {n!r}") from None
    if count < 1:
        raise ValueError(f"n must be at least 1, not {count}")
    chosen = <int> min(count, 1 << 30)


def get_num_threads():
    """Number of threads that a large call would use now, with no other Python thread's under way and no other process busy.

    Returns
    -------
    int
        The least of `set_num_threads`, OpenMP's limit and the processors that this process may use; 1 in a process
        that was forked after cylsm was imported, and in a build without OpenMP.

    See Also
    --------
    set_num_threads : set the limit.

    Examples
    --------
    >>> import cylsm
    >>> cylsm.get_num_threads() >= 1
    True
    """
    return most_threads(1)


def describe():
    """What show_config says of threads."""
    if not CYLSM_OPENMP:
        reason = "built without OpenMP"
    elif cylsm_forked:
        reason = "forked after the import of cylsm: OpenMP's threads did not survive"
    else:
        reason = None
    return {"openmp": bool(CYLSM_OPENMP), "num_threads": most_threads(1), "single_thread_reason": reason}
