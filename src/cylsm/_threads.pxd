cdef int threads_for(Py_ssize_t work) noexcept nogil
# Around a call of so much work, when its threads are known; what the first returns goes to the second.
cdef bint enter(Py_ssize_t work) noexcept nogil
cdef void leave(bint entered) noexcept nogil
# The time in seconds, if a region of several threads is to be timed, else 0; then what it tells when all of them have done their
# parts: when it began, and when the first was done.
cdef double begin_region() noexcept nogil
cdef double now() noexcept nogil
cdef void note_region(double begun, double done, Py_ssize_t work, int threads) noexcept nogil
