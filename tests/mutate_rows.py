"""Whether the tests of rows notice a line that is broken on purpose; run by hand.

`python tests/mutate_rows.py [triton|torch|cpu ...]` copies the tree, applies one mutation at a time
and runs the tests of its path against the copy. It says which mutations survive; its exit code is 1
if one does. Tests that fail without a mutation are named and left out. `cpu` builds the loss's C++
for each mutation.
"""

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = [f"tests/test_rows{name}.py" for name in ("", "_memory", "_loss", "_bits")]
HEAD = ["tests/test_rows_head.py"]
FLAGS = ["-O2", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-pthread", "-fopenmp-simd"]

ONLINE, POLICY = "kernels/online.py", "kernels/policy_loss.py"
TRITON = [
    # row_statistics and load_z
    (ONLINE, "(weighted + moved * total) * factor", "weighted * factor"),
    (ONLINE, 'base = tl.where(larger == -float("inf"), 0.0, larger)', "base = larger"),
    (ONLINE, '    peak = -float("inf")\n', "    peak = 0.0\n"),
    (ONLINE, "inside = (target >= 0) & (target < valid)", "inside = target >= 0"),
    (ONLINE, "log_total - LN_2 * weighted / total", "log_total - weighted / total"),
    (ONLINE, "x_y = softcap * tanh(x_y / softcap)", "x_y = x_y"),
    (ONLINE, 'return tl.where(columns < valid, z, -float("inf"))', "return z"),
    (ONLINE, 'e * tl.where(t == -float("inf"), 0.0, t)', "e * t"),
    (ONLINE, "for start in range(0, valid, BLOCK):", "for start in range(0, valid - 1, BLOCK):"),
    (ONLINE, "total = total * factor + tl.sum(e, 0)", "total = total + tl.sum(e, 0)"),
    (ONLINE, "(x_y - base) * k * LN_2 - log_total", "(x_y - base) * k - log_total"),
    # write_gradient and write_zeros
    (ONLINE, "constant = -(a + g * (entropy - log_total))", "constant = -(a + g * entropy)"),
    (ONLINE, "slope = -g * LN_2 / total * outer", "slope = -g / total * outer"),
    (ONLINE, "tl.where(p > 0, p * (logprob + entropy), 0.0)", "p * (logprob + entropy)"),
    (ONLINE, "-a * expm1(logprob) - g * surprise", "-a * (p - 1.0) - g * surprise"),
    (ONLINE, "-a * expm1(logprob) - g * surprise", "-a * expm1(logprob)"),
    (ONLINE, 'slope * tl.where(t == -float("inf"), 0.0, t) + constant', "slope * t + constant"),
    (ONLINE, "dx * (1.0 - tanh_z * tanh_z)", "dx * (1.0 - tanh_z)"),
    (
        ONLINE,
        "dx.to(out_row.dtype.element_ty), mask=columns < vocab",
        "dx.to(out_row.dtype.element_ty), mask=columns < valid",
    ),
    (ONLINE, "zeros = tl.zeros([BLOCK], tl.float32)", "zeros = tl.full([BLOCK], 1.0, tl.float32)"),
    # row_settings, tanh, expm1
    (ONLINE, "keep = tl.load(mask + row) != 0", "keep = True"),
    (ONLINE, "t = tl.load(temperatures + row)", "t = temperature"),
    (ONLINE, "square + 0.13331924378871918", "square + 0.1333"),
    (ONLINE, "p = p * square - 0.33333298563957214", "p = p * square - 0.33333"),
    (ONLINE, "tl.where(size < 0.6, small, large)", "tl.where(size < 1.0, small, large)"),
    (ONLINE, "tl.where(size < 0.6, small, large)", "tl.where(size < 0.001, small, large)"),
    (ONLINE, "large = tl.where(u < 0, -large, large)", "large = large"),
    (ONLINE, "size * -2.8853900817779268", "size * -2.8853"),
    (ONLINE, "p = 1.0 + x * (1.0 / 5.0) * p", "p = 1.0 + x * (1.0 / 6.0) * p"),
    (ONLINE, "tl.where(x > -0.5, x * p,", "tl.where(x > -3.0, x * p,"),
    (ONLINE, "tl.where(x > -0.5, x * p,", "tl.where(x > 1.0, x * p,"),
    # _coefficients and the kernels
    (POLICY, "tl.where((advantage < 0) & (bounded < low), low", "tl.where(bounded < low, low"),
    (POLICY, "upper = tl.where(advantage < 0, dual, high)", "upper = high"),
    (POLICY, "a = tl.where((bounded < log_ratio) | (bounded > log_ratio), 0.0, a)", "a = a"),
    (POLICY, "bounded = tl.where(bounded < low, low, bounded)", "bounded = bounded"),
    (POLICY, "a * tl.exp2(bounded * online.LOG2_E)", "a * tl.exp2(log_ratio * online.LOG2_E)"),
    (POLICY, "tl.where(correction > cap, cap, correction)", "correction"),
    (POLICY, "tl.where(correction > cap, 0.0, correction)", "correction"),
    (POLICY, "gap = old - ", "gap = logprob - "),
    (POLICY, "    old = logprob\n", "    old = 0.0\n"),
    (POLICY, "loss = loss - entropy_coef * entropy", "loss = loss + entropy_coef * entropy"),
    (POLICY, "a * weight, -entropy_coef * weight", "a * weight, -entropy_coef"),
    (POLICY, "return loss * weight, ", "return loss, "),
    (POLICY, "g = g * step", "g = g"),
    (POLICY, "if (a != 0) | (g != 0):", "if a != 0:"),
    ("kernels/row_gradient.py", "if keep & ((a != 0) | (g != 0)):", "if keep & (a != 0):"),
    ("kernels/row_gradient.py", "if keep & ((a != 0) | (g != 0)):", "if keep:"),
    ("kernels/row_statistics.py", "tl.store(entropy + row, 0.0)", "tl.store(entropy + row, 1.0)"),
    ("kernels/scale.py", ".to(tl.float32) * f", ".to(tl.float32)"),
    ("kernels/scale.py", "if f != 1.0:", "if f > 1.0:"),
]

DEFINITION, HEAD_FILE = "fastrl/ops/definition.py", "fastrl/ops/head.py"
LOSSES = "fastrl/losses.py"
TORCH = [
    (DEFINITION, "clamp_(min=-1000.0)", "clamp_(min=-8.0)"),
    (DEFINITION, "shifted_CV.clamp_(min=-1000.0)", "shifted_CV"),
    (DEFINITION, "torch.expm1(self.logprobs_C1)", "(self.logprobs_C1.exp() - 1)"),
    (DEFINITION, "        z_CV *= self.inverse_temperature\n", ""),
    (DEFINITION, "weighted_C1 / self.sum_C1", "weighted_C1"),
    (DEFINITION, "torch.where(p_C1 > 0, p_C1 * (self.logprobs_C1 + self.entropy_C1), 0.0)",
     "p_C1 * (self.logprobs_C1 + self.entropy_C1)"),
    (DEFINITION, "    out_NV[~needed_N] = 0\n", ""),
    (DEFINITION, "        out_NV[~written_N] = 0\n", ""),
    (DEFINITION, "    out_NV[~needed_N] = 0\n    out_NV[:, x.valid :] = 0\n",
     "    out_NV[~needed_N] = 0\n"),
    (DEFINITION, "self.x.logit_scale * self.inverse_temperature", "self.inverse_temperature"),
    (DEFINITION, "1 - self.tanh.square()", "1 - self.tanh"),
    (DEFINITION, "add_(self.entropy_C1 - self.log_sum_C1)", "add_(self.entropy_C1)"),
    (DEFINITION, "(a_C * scale, g_C * scale)", "(a_C * scale, g_C)"),
    (DEFINITION, "needed_C = (a_C != 0) | (g_C != 0)", "needed_C = a_C == a_C"),
    (HEAD_FILE, "            add_mm(self.by_weight[",
     "            self.by_weight.copy_(self.by_weight.to(self.x.hidden_ND.dtype))\n"
     "            add_mm(self.by_weight["),
    (HEAD_FILE, "hidden_CD = x.hidden_ND[index_C].to(self.input_dtype)",
     "hidden_CD = x.hidden_ND[index_C].bfloat16().to(self.input_dtype)"),
    (LOSSES, "a = torch.where((bounded < log_ratio) | (bounded > log_ratio), 0.0, a)", "a = a"),
    (LOSSES, "a, g = a * rows.row_weights, g * rows.row_weights",
     "a = a * rows.row_weights"),
    (LOSSES, "log_ratio.clamp(low, dual), log_ratio.clamp(max=high)",
     "log_ratio.clamp(low, dual), log_ratio.clamp(low, high)"),
]  # fmt: skip

KERNEL, VECTORS, LOSS = "csrc/row_kernel.h", "csrc/vectors.h", "csrc/loss.cpp"
DRAW, SAMPLE, ROWS = "csrc/draw_kernel.h", "csrc/sample.cpp", "csrc/rows.h"
CPU = [
    (KERNEL, "ratio > 0 ? (weighted + moved * sum) * ratio : weighted - weighted",
     "weighted * ratio"),
    (KERNEL, "const float base = std::isinf(running.peak) ? 0.0f : running.peak;",
     "const float base = running.peak;"),
    (KERNEL, "++i) z[i] = -std::numeric_limits<float>::infinity();", "++i) z[i] = 0.0f;"),
    (KERNEL, "float peak = -std::numeric_limits<float>::infinity();", "float peak = 0.0f;"),
    (KERNEL, "result.log_sum - LN2 * running.weighted", "result.log_sum - running.weighted"),
    (KERNEL, "-a * std::expm1(statistics.logprob)", "-a * (static_cast<float>(p) - 1.0f)"),
    (KERNEL, "if (p > 0) at_target -=", "at_target -="),
    (KERNEL, "g * (statistics.entropy - statistics.log_sum)", "g * statistics.entropy"),
    (KERNEL, "slope = -scaled * g * LN2", "slope = -scaled * g"),
    (KERNEL, "dx *= 1.0f - tanh * tanh", "dx *= 1.0f - tanh"),
    (KERNEL, "at_target *= 1.0 - tanh * tanh", "at_target *= 1.0 - tanh"),
    (KERNEL, "(out + logits.valid), 0,", "(out + logits.valid), 1,"),
    (KERNEL, "outer = logit_scale / temperature", "outer = 1.0 / temperature"),
    (KERNEL, "elementwise = softcap > 0 || logit_scale <= 0", "elementwise = softcap > 0"),
    (KERNEL, "return t < LOWEST ? splat(LOWEST) : t;", "return t;"),
    (KERNEL, "sums[u] += e;", "if (u < 3) sums[u] += e;"),
    (KERNEL, "if (peak > running.peak) running.move_to", "if (peak > 1e30f) running.move_to"),
    (VECTORS, "p = p * f + 0.6931471824645996f", "p = p * f + 0.69314f"),
    (VECTORS, "splat(0.00015353361959569156f)", "splat(0.0f)"),
    (VECTORS, "bits + 0x7fff + ((bits >> 16) & 1)", "bits + 0x8000"),
    (VECTORS, "(~number & 0x7fc00000)", "(~number & 0x7f800000)"),
    (VECTORS, "magnitude + 0xfff + ((magnitude >> 13) & 1)", "magnitude + 0x1000"),
    (VECTORS, "magnitude >= 0x477ff000", "magnitude >= 0x47900000"),
    (VECTORS, " | (is_nan & 0x200)", ""),
    (VECTORS, "magnitude < (0x7c00 << 13)", "magnitude <= (0x7c00 << 13)"),
    (VECTORS, "_mm512_cvtps_ph(values, 0)", "_mm512_cvtps_ph(values, 3)"),
    (VECTORS, "_mm256_cvtps_ph(values, 0)", "_mm256_cvtps_ph(values, 3)"),
    (VECTORS, "size < 0.6f ? small", "size < 1.0f ? small"),
    (VECTORS, "p * square + 0.13331924378871918f", "p * square + 0.1333f"),
    (VECTORS, " | (as_ints(u) & INT32_MIN)", ""),
    (LOSS, "settings.high : settings.dual", "settings.high : settings.high"),
    (LOSS, "if ((both || advantage < 0) && bounded < settings.low)", "if (bounded < settings.low)"),
    (LOSS, "if (!both && (bounded < log_ratio || bounded > log_ratio)) a = 0.0;", ""),
    (LOSS, "? settings.cap : 0.0", "? settings.cap : settings.cap"),
    (LOSS, "g = -settings.entropy_coef * weight", "g = -settings.entropy_coef"),
    (LOSS, "loss -= settings.entropy_coef", "loss += settings.entropy_coef"),
    (LOSS, "c.g * settings.scale", "c.g"),
    (LOSS, "|| (a == 0 && g == 0)", "|| a == 0"),
    (LOSS, "row, logprobs[row], entropy[row])", "row, found.logprob, found.entropy)"),
    (LOSS, "std::memset(target, 0, logits.vocab * bytes)", "std::memset(target, 0, bytes)"),
    (LOSS, "return {loss * weight,", "return {loss,"),
]  # fmt: skip
TRITON_SAMPLE, CHOICE = "kernels/sample.py", "fastrl/ops/choice.py"
SAMPLING = ["tests/test_rows_sample.py", "tests/test_philox.py"]
TRITON += [
    (TRITON_SAMPLE, "tl.where(z == 0, 0.0, z).to", "z.to"),
    (TRITON_SAMPLE, "key_of(base) + 1", "key_of(base)"),
    (TRITON_SAMPLE, "tl.interleave(w0, w2), tl.interleave(w1, w3)",
     "tl.interleave(w0, w1), tl.interleave(w2, w3)"),
    (TRITON_SAMPLE, "(blocks << 14) | c1", "(blocks << 13) | c1"),
    (TRITON_SAMPLE, "(words >> 9)", "(words >> 8)"),
    (TRITON_SAMPLE, "others = enough == 0", "others = (enough == 0) & (keys > low + 9)"),
    (TRITON_SAMPLE, "tl.ceil(tl.minimum(lacking, equals))", "tl.minimum(lacking, equals)"),
    (TRITON_SAMPLE, "mass_high + ties * one", "mass_high"),
    (TRITON_SAMPLE, "ties = wanted - count_high", "ties = wanted"),
    (TRITON_SAMPLE, "ties = tl.minimum(tl.maximum(ties, 1), equals)", "ties = equals"),
    (TRITON_SAMPLE, "top_p * within, least", "top_p * total, least"),
    (TRITON_SAMPLE, "(1.0 - top_p) * total / valid", "(1.0 - top_p) * total"),
    (TRITON_SAMPLE, "(likely > threshold) | ((likely == threshold) & (likely_ties < ties))",
     "likely > threshold"),
    (TRITON_SAMPLE, "ties = tl.where(likely > threshold, valid, ties)", "ties = ties"),
    (TRITON_SAMPLE, "threshold = tl.maximum(threshold, likely)", "threshold = likely"),
    (TRITON_SAMPLE, "seen + rank == ties), columns, 0)", "rank == ties), columns, 0)"),
    (TRITON_SAMPLE, "seen += count", "seen += 0"),
    (TRITON_SAMPLE, "keep = (z > threshold) | ((equal > 0) & (columns <= last))",
     "keep = z >= threshold"),
    (TRITON_SAMPLE, "keep = (z > threshold) | ((z == threshold) & (columns <= last))",
     "keep = z >= threshold"),
    (TRITON_SAMPLE, "tl.log(kept / total)", "tl.log(kept)"),
    (TRITON_SAMPLE, 'if (total > 0) & (total < float("inf")):', "if total == total:"),
    (TRITON_SAMPLE, "better = score > best", "better = score >= best"),
    (TRITON_SAMPLE, "* k * online.LN_2 - log_total", "* online.LN_2 - log_total"),
]  # fmt: skip
TORCH += [
    (CHOICE, "middle >> 16, (middle", "middle >> 15, (middle"),
    (CHOICE, "(key1 + WEYL[1]) & LOW", "key1 + WEYL[1]"),
    (CHOICE, "|= blocks_B", "= blocks_B"),
    (CHOICE, "stable=True", "stable=False"),
    (CHOICE, "e_NV >= min_p[:, None] * e_NV[:, :1]", "e_NV > min_p[:, None]"),
    (CHOICE, "e_NV < limits_N[:, None]", "e_NV <= limits_N[:, None]"),
    (CHOICE, "torch.where(top_p < 1, top_p * sums_NV[:, -1], torch.inf)",
     "top_p * sums_NV[:, -1]"),
    (CHOICE, ".exp().masked_fill(~keep_NV, 0.0)", ".exp()"),
    (CHOICE, ".clamp(max=0.0)", ""),
    (CHOICE, "torch.where(keep_NV.all(1), 0.0, log_kept_N)", "log_kept_N"),
    (CHOICE, "torch.where(broken_N, -1, scores_NV.argmax(1))", "scores_NV.argmax(1)"),
    (DEFINITION, "        z_CV /= t[index_C, None]", "        z_CV /= 1.0 + 0 * t[index_C, None]"),
]  # fmt: skip
CPU += [
    (DRAW, "(index + column / 4) << 14", "(index + column / 4) << 13"),
    (DRAW, "key0 += 0x9E3779B9u, key1", "key0 += 0x9E3779B8u, key1"),
    (DRAW, "MOST_NOISE = 23.48f", "MOST_NOISE = 20.0f"),
    (DRAW, "p = p * f + 1.442694902420044f", "p = p * f + 1.4424f"),
    (DRAW, "p = p * f + 0.48092323541641235f", "p = p * f + 0.478f"),
    (DRAW, "bits - 0x3f3504f3", "bits - 0x3f800000"),
    (DRAW, "(columns <= last)", "(columns < last)"),
    (DRAW, "(values[half] > kept.least) |", "(values[half] > kept.least) &"),
    (DRAW, "(1.0f - u) * 1.4426f <= power", "(1.0f - u) * 1.4426f * 1.2f <= power"),
    (DRAW, "(lead + 127.0f) * 0x1p23f", "(lead + 126.0f) * 0x1p23f"),
    (DRAW, "counts[n] -= keep", "counts[n] += keep"),
    (DRAW, "masses[n] += keep ? e : Floats{}", "masses[n] += e"),
    (DRAW, "(values >= low) & (values < high)", "(values >= low) & (values <= high)"),
    (SAMPLE, "before + half >= wanted", "before + half > wanted"),
    (SAMPLE, "low = middle, before += half", "low = middle"),
    (SAMPLE, "wanted - weight(at_high)", "wanted"),
    (SAMPLE, "prefix{~uint64_t{0}, at_high.mass}", "prefix{~uint64_t{0}, 0}"),
    (SAMPLE, "if (n > 0) high = thresholds[n - 1], at_high = above[n - 1];",
     "if (n > 0) high = thresholds[n - 1];"),
    (SAMPLE, "weight(above[n]) < wanted", "weight(above[n]) <= wanted"),
    (SAMPLE, "(1 - top_p) * total / valid", "(1 - top_p) * total"),
    (SAMPLE, "top_p * kept.mass, least", "top_p * total, least"),
    (SAMPLE, "if (likely.last > kept.last) kept = likely;", "kept = likely;"),
    (SAMPLE, "row.at_least(min_p);\n        if (likely.last > kept.last)",
     "row.at_least(min_p);\n        if (true)"),
    (SAMPLE, "std::log(kept.mass / total)", "std::log(kept.mass)"),
    (SAMPLE, "if (!std::isfinite(found.log_sum)) return;", ""),
    (ROWS, "const float zero_once = z + 0.0f;", "const float zero_once = z;"),
]  # fmt: skip
PATHS = {"triton": TRITON, "torch": TORCH, "cpu": CPU}
SELECT = {"triton": "triton", "torch": "not triton and not cpu", "cpu": "cpu"}


def copy_tree(target: Path) -> None:
    """What the tests need; the copy's kernels come before an editable installation's."""
    for name in ("csrc", "fastrl", "kernels", "tests"):
        ignore = shutil.ignore_patterns("__pycache__", "kernels")
        shutil.copytree(ROOT / name, target / name, ignore=ignore if name != "kernels" else None)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, target / name)
    (target / "fastrl" / "kernels").symlink_to("../kernels")


class Tree:
    """A copy of the repository and the tests of one path in it."""

    def __init__(self, folder: Path, path: str) -> None:
        self.folder, self.path = folder, path
        self.known: list[str] = []  # fail without a mutation
        self.stale: set[str] = set()  # C++ files whose objects hold the last mutation
        copy_tree(folder)
        self.environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        self.environment["TRITON_INTERPRET"] = "1" if path == "triton" else "0"
        look = "import fastrl, fastrl.kernels as k; print(fastrl.__file__, k.__file__)"
        found = self.run(sys.executable, "-c", look).stdout.split()
        assert len(found) == 2 and all(name.startswith(str(folder)) for name in found), found

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True
        )

    def test(self, *more: str, files: list[str]) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=no"]
        known = [f"--deselect={name}" for name in self.known]
        return self.run(*command, "-k", SELECT[self.path], *known, *more, *files)

    def baseline(self) -> None:
        found = self.test("-rf", files=TESTS + HEAD + SAMPLING)
        assert found.returncode in (0, 1), found.stdout + found.stderr
        self.known = re.findall(r"^FAILED (.*?)(?: - .*)?$", found.stdout, re.MULTILINE)
        for name in self.known:
            print(f"fails without a mutation: {name}", flush=True)

    def build(self, sources: list[str]) -> bool:
        """Compile some of the C++ files; whether that worked."""
        torch = importlib.util.find_spec("torch").origin  # its headers bring pybind11's
        includes = [str(Path(torch).parent / "include"), sysconfig.get_paths()["include"]]
        objects = self.folder / "objects"
        objects.mkdir(exist_ok=True)
        running = []
        for source in sources:
            to = ["-c", source, "-o", str(objects / f"{Path(source).stem}.o")]
            running.append(
                subprocess.Popen(
                    ["g++", *FLAGS, *(f"-I{i}" for i in includes), *to], cwd=self.folder,
                    stderr=subprocess.DEVNULL,
                )
            )  # fmt: skip
            if len(running) % 2 == 0 or source == sources[-1]:
                for process in running[-2:]:
                    process.wait()
        if any(process.returncode for process in running):
            return False
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        files = [str(o) for o in sorted(objects.glob("*.o"))]
        library = str(self.folder / f"fastrl/_C{suffix}")
        return self.run("g++", "-shared", "-pthread", *files, "-o", library).returncode == 0

    def survives(self, file: str, old: str, new: str) -> bool:
        """Whether every test passes with the mutation."""
        place = self.folder / file
        before = place.read_text()
        assert old in before, f"{file} no longer has {old!r}"
        sources = {file} if file.endswith(".cpp") else set()
        if file in (KERNEL, VECTORS, DRAW, ROWS):
            sources = {f"csrc/rows_{name}.cpp" for name in ("plain", "avx2", "avx512")}
        if file == ROWS:
            sources.add(SAMPLE)
        place.write_text(before.replace(old, new, 1))
        try:
            built = not sources or self.build(sorted(sources | self.stale))
            assert built, f"{file} does not compile with {new!r}"
            self.stale = sources
            files = HEAD if file == HEAD_FILE else TESTS
            if file in (TRITON_SAMPLE, CHOICE, DRAW, SAMPLE, ROWS) or "z_CV /= t[" in old:
                files = SAMPLING
            if file in (POLICY, LOSS, LOSSES):  # what notices soonest comes first
                files = sorted(files, key=lambda name: "loss" not in name)
            return self.test("-x", files=files).returncode == 0
        finally:
            place.write_text(before)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="*", default=["triton", "torch"], help=", ".join(PATHS))
    parser.add_argument("--only", default="", help="mutations whose text has this")
    arguments = parser.parse_args()
    survivors = count = 0
    for path in arguments.paths:
        with tempfile.TemporaryDirectory() as name:
            tree = Tree(Path(name), path)
            if path == "cpu":
                sources = sorted((tree.folder / "csrc").glob("*.cpp"))
                assert tree.build([str(s.relative_to(tree.folder)) for s in sources])
            tree.baseline()
            for file, old, new in PATHS[path]:
                if arguments.only not in f"{file} {old}":
                    continue
                count += 1
                survived = tree.survives(file, old, new)
                survivors += survived
                print(
                    f"{'SURVIVED' if survived else 'noticed'}: {file}: {old!r} -> {new!r}",
                    flush=True,
                )
    print(f"{count - survivors} of {count} mutations were noticed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
