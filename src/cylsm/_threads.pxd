cdef int threads_for(Py_ssize_t work) noexcept nogil
# Around a call of so much work, when its threads are known; what the first returns goes to the second.
cdef bint enter(Py_ssize_t work) noexcept nogil
cdef void leave(bint entered) noexcept nogil
