"""Builds the extension modules; everything else about the package stands in pyproject.toml.

a. The kernels are compiled once per instruction set from one file, so a module is a name and its flags. A set
   that cannot be built is left out: at run time the module's absence says so.
b. The compiler is asked, not the platform's name: each optional flag is tried on a few lines of C with the
   compiler, CFLAGS and target that the build itself uses. So a cross compiler, a universal macOS build and
   a compiler without OpenMP all get what they can build, and a warning for the rest.
c. Cython's C goes to build/, so that the source tree stays clean. The flags are recorded beside it, and other
   flags write it anew: an object of a sanitizer build never ends up in an ordinary one.
d. Our flags come after CFLAGS, or a distribution's -O2 would leave the kernels scalar. What CFLAGS takes away
   with -fno-... or -mno-... stays away all the same.

CYLSM_SANITIZE=address,undefined makes a sanitizer build, with the kernels' asserts on.
"""

import os
import shlex
import tempfile
from glob import glob
from pathlib import Path

import Cython
import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

MODULES = (
    "_functions",
    "_losses",
    "_arrays",
    "_driver",
    "_threads",
    "_cpu",
    "_kernels_baseline",
    "_kernels_avx2",
    "_kernels_avx512",
)
USE_NUMPY = {"_functions", "_losses", "_arrays"}
USE_OPENMP = {"_driver", "_threads"}

# module -> flags of gcc and clang, flag of MSVC, macro that shows they took effect. Nothing is switched on
# here that `_cpu` does not check for before it imports the module.
INSTRUCTION_SETS = {
    "_kernels_avx2": ("-mavx2 -mfma", "/arch:AVX2", "__AVX2__"),
    "_kernels_avx512": (  # gcc stays at 256 bits unless told what to prefer
        "-mavx512f -mavx512vl -mavx512dq -mavx512bw -mavx2 -mfma -mprefer-vector-width=512",
        "/arch:AVX512",
        "__AVX512BW__",
    ),
}

# Never -ffast-math, -fassociative-math or -ffinite-math-only: they fold the rounding trick, nan and inf.
OPTIMISE = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fvisibility=hidden"]
TUNING = [
    # gcc: 16-lane loops are vectorised, not unrolled into scalars
    ["--param", "max-completely-peel-times=3"],
    # gcc: nor do loops over a kilobyte become calls of memcpy and memset
    ["-fno-tree-loop-distribute-patterns"],
    # gcc: counts stay in the order they are written in, and so in fewer registers
    ["-fno-tree-reassoc"],
    # gcc: what is not declared inline stays apart; among other loops the shuffles run out of registers
    ["-fno-inline-functions", "-fno-inline-small-functions", "-fno-inline-functions-called-once"],
    # gcc: what is one body for several callers stays one: 1.74 MB of AVX-512 code, and otherwise 1.87
    ["-fno-ipa-cp-clone"],
    # gcc: vectors are computed side by side, since a processor sees too few ahead: 7 % in float64, 13 % in baseline
    ["-fschedule-insns", "-fsched-pressure"],
    # identical code ran up to 20 % slower at an unlucky address
    ["-falign-functions=64"],
    ["-falign-loops=32"],
]

OPENMP = [  # compile flags, link flags; the first pair that works
    (["-fopenmp"], ["-fopenmp"]),
    (["-Xpreprocessor", "-fopenmp"], ["-lomp"]),  # Apple's clang with libomp beside it
]
OPENMP_MSVC = [(["/openmp"], [])]

OPENMP_PROBE = """
#ifndef _OPENMP
#error "OpenMP is off"
#endif
#include <omp.h>
int probe(void) { return omp_get_max_threads(); }
"""
X86_64_PROBE = """
#if !defined(__x86_64__) && !defined(_M_X64)
#error "another machine"
#endif
"""

ALWAYS_INLINE = "__forceinline" if os.name == "nt" else "inline __attribute__((always_inline))"

# Bounds checks stay on: the kernels index raw pointers, which Cython never checks, and elsewhere it is lists
# and tuples that are indexed, once a call.
DIRECTIVES = {
    "language_level": 3,
    "cdivision": True,
    "binding": True,
    "embedsignature": False,
    "freethreading_compatible": True,
}
GENERATED = Path("build", "cython")

SANITIZERS = os.environ.get("CYLSM_SANITIZE")
TAKEN_AWAY = [flag for flag in shlex.split(os.environ.get("CFLAGS", "")) if flag.startswith(("-fno-", "-mno-"))]


class BuildExt(build_ext):
    """Finds out what the compiler can do, runs Cython on what is left and compiles it."""

    def finalize_options(self):
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def build_extensions(self):
        flags, link_flags = self.common_flags()
        openmp = self.openmp_flags()
        is_x86_64 = self.accepts([], X86_64_PROBE)
        for ext in list(self.extensions):
            name = ext.name.rpartition(".")[2]
            ext.extra_compile_args = list(flags)
            ext.extra_link_args = list(link_flags)
            if name in USE_OPENMP:
                ext.extra_compile_args += openmp[0]
                ext.extra_link_args += openmp[1]
            if name in INSTRUCTION_SETS:
                isa_flags = self.instruction_set_flags(name) if is_x86_64 else None
                if isa_flags is None:
                    self.leave_out(ext)
                    continue
                ext.extra_compile_args += isa_flags
            ext.extra_compile_args += TAKEN_AWAY
        self.write_c()
        super().build_extensions()

    def accepts(self, flags, code="int probe;\n", link_flags=None):
        """Whether `code` compiles with `flags` and, given `link_flags`, links as an extension does."""
        with tempfile.TemporaryDirectory() as room:
            source, library = Path(room, "probe.c"), Path(room, "probe.so")
            source.write_text(code)
            try:
                objects = self.compiler.compile([str(source)], output_dir=room, extra_postargs=flags)
                if link_flags is not None:
                    self.compiler.link_shared_object(objects, str(library), extra_postargs=link_flags)
            except (CompileError, LinkError):
                return False
        return True

    def is_msvc(self):
        return self.compiler.compiler_type == "msvc"

    def common_flags(self):
        """Compile and link flags of every module."""
        if self.is_msvc():
            return ["/O2", "/fp:precise"], []
        flags = list(OPTIMISE)
        for hint in TUNING:
            if self.accepts([*hint, "-Werror"]):
                flags += hint
        if not SANITIZERS:
            return flags, []
        sanitize = f"-fsanitize={SANITIZERS}"
        # gcc fuses x - n * ln2 only with the expensive ones, and float32's exp counts on it.
        flags += ["-O1", "-fexpensive-optimizations", "-g", sanitize, "-fno-sanitize-recover=all"]
        flags += ["-fno-omit-frame-pointer"]
        return flags, [sanitize]

    def openmp_flags(self):
        """Compile and link flags that switch OpenMP on; none, and a warning, where the compiler has none."""
        for flags, link_flags in OPENMP_MSVC if self.is_msvc() else OPENMP:
            if self.accepts([*flags, *TAKEN_AWAY], OPENMP_PROBE, link_flags):
                return flags, link_flags
        self.warn("the compiler does not build OpenMP programs: this cylsm will use one thread only")
        return [], []

    def instruction_set_flags(self, name):
        """Flags for the module `name`; None, and a warning, where the compiler lacks one of them."""
        unix, msvc, macro = INSTRUCTION_SETS[name]
        flags = (msvc if self.is_msvc() else unix).split()
        if self.accepts([*flags, *TAKEN_AWAY], f"#ifndef {macro}\n#error {macro} is off\n#endif\n"):
            return flags
        self.warn(f"the compiler does not take {' '.join(flags)}: this cylsm will lack {name}")
        return None

    def leave_out(self, ext):
        """Drop `ext`, and what an earlier build with another compiler left of it, in place or in build/."""
        self.extensions.remove(ext)
        for room in ("src", self.build_lib):
            Path(room, self.get_ext_filename(ext.name)).unlink(missing_ok=True)

    def write_c(self):
        """Run Cython on the extensions, on all of them where anything but the sources has changed."""
        record = GENERATED / "flags.txt"
        commands = [getattr(self.compiler, part, None) for part in ("compiler_so", "linker_so")]
        settings = [Cython.__version__, numpy.__version__, DIRECTIVES, commands]
        settings += [
            (ext.name, ext.define_macros, ext.extra_compile_args, ext.extra_link_args) for ext in self.extensions
        ]
        flags = "\n".join(map(repr, settings))
        changed = not record.exists() or record.read_text() != flags
        written = cythonize(
            self.extensions,
            force=self.force or changed,
            build_dir=str(GENERATED),
            include_path=["src"],
            compiler_directives=DIRECTIVES,
        )
        for ext, with_c in zip(self.extensions, written, strict=True):
            ext.sources = with_c.sources
        record.write_text(flags)


def extension(name):
    ext = Extension(
        f"cylsm.{name}",
        [f"src/cylsm/{name}.pyx"],
        include_dirs=["src/cylsm"],
        define_macros=[] if SANITIZERS else [("NDEBUG", None)],
        undef_macros=["NDEBUG"] if SANITIZERS else [],
        depends=sorted(glob("src/cylsm/*.h")),
    )
    if name.startswith("_kernels_") and not SANITIZERS:
        # One body serves every operation and width: it must be inlined where these are constants. Instrumented, that
        # would take minutes to compile.
        ext.define_macros.append(("CYTHON_INLINE", ALWAYS_INLINE))
    if name in USE_NUMPY:
        ext.include_dirs.append(numpy.get_include())
        # NumPy 2.0 is the oldest we run on: nothing it deprecates is used, and nothing newer is needed.
        ext.define_macros += [
            ("NPY_TARGET_VERSION", "NPY_2_0_API_VERSION"),
            ("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION"),
        ]
    return ext


setup(ext_modules=[extension(name) for name in MODULES], cmdclass={"build_ext": BuildExt})
