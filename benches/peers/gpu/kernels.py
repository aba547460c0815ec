"""The kernels of `planish doctor --bench` in torch: a JSON line for each, under the same name.

    python benches/peers/gpu/kernels.py --device cuda --only attention,swiglu

bf16, at the same shapes. With `--compile` only what torch runs several kernels for, by torch.compile. Liger Kernel and
bitsandbytes are measured where they are installed. `--tiny` takes the shapes of the emulator, to see that all of it
runs.
"""

import argparse
import importlib.util

import torch
import torch.nn.functional as F
from clock import Clock, emit, guarded

BF16, F32 = torch.bfloat16, torch.float32


def installed(name: str) -> bool:
    """Whether a package is there."""
    return importlib.util.find_spec(name) is not None


class Bench:
    """Items and what they need."""

    def __init__(self, args) -> None:
        self.clock, self.device = Clock(args.device, args.tiny), torch.device(args.device)
        self.only, self.tiny, self.compile = args.only, args.tiny, args.compile

    def pick(self, card, tiny):
        """The size for a card, or a tiny one."""
        return tiny if self.tiny else card

    def normal(self, *shape, dtype=BF16, scale=1.0, grad=False):
        """Normal numbers on the device."""
        made = torch.randn(*shape, device=self.device, dtype=F32).mul_(scale).to(dtype)
        return made.requires_grad_(grad)

    def item(self, name: str, shape: str, make, library: str = "torch", **more) -> None:
        """Measures the call that `make` gives, if it was asked for."""
        if self.only and not any(name.startswith(prefix) for prefix in self.only):
            return
        if self.compile != (library == "torch.compile"):
            return
        guarded(library, name, shape, lambda: {**self.clock.time(make()), **more})
        if self.clock.cuda:
            torch.cuda.empty_cache()

    def variants(self, name: str, shape: str, function, make) -> None:
        """`make(function)` gives the call; measured as it is or compiled."""
        self.item(name, shape, lambda: make(function))
        self.item(name, shape, lambda: make(torch.compile(function)), library="torch.compile")


def card(b: Bench) -> None:
    """The card's limits."""
    n = b.pick(1 << 30, 1 << 16)

    def copying():
        x, y = (torch.randint(0, 255, (n,), device=b.device, dtype=torch.uint8) for _ in range(2))
        return lambda: y.copy_(x)

    b.item("card/copy", f"{n} bytes within the device", copying)
    square(b, "card/product", b.pick(8192, 128), "nt")
    if b.compile or (b.only and "card" not in b.only):
        return
    x, calls = torch.zeros(1, device=b.device), b.pick(1000, 4)

    def host(name, shape, run):
        import time

        def measure():
            samples = []
            for _ in range(6):
                b.clock.wait()
                began = time.perf_counter()
                run()
                b.clock.wait()
                samples.append((time.perf_counter() - began) / calls)
            samples = sorted(samples[1:])
            return {"state": "measured", "seconds": samples[2], "fastest": samples[0], "slowest": samples[-1]}

        guarded("torch", name, shape, measure)

    def each(after):
        for _ in range(calls):
            x.fill_(0)
            after()

    host("card/launch", "one after the other, none waited for", lambda: each(lambda: None))
    if b.clock.cuda:
        graph = b.clock.captured(lambda: x.fill_(0), calls)
        if graph:
            host("card/launch_recorded", "recorded as one graph", graph.replay)
    host("card/round_trip", "each waited for", lambda: each(b.clock.wait))


def square(b: Bench, name: str, n: int, layout: str) -> None:
    """C = A B; as in planish, the gradient of a weight is that of transposed A."""

    def make():
        x, y = b.normal(n, n), b.normal(n, n)
        out = torch.empty(n, n, device=b.device, dtype=BF16)
        left, right = (x.t() if layout[0] == "t" else x), (y.t() if layout[1] == "t" else y)
        return lambda: torch.mm(left, right, out=out)

    shape = f"{n} x {n} x {n}, bf16"
    # torch has no product that adds to f32.
    added = {"note": "bf16 result"} if layout == "tn" else {}
    b.item(name, shape + (", added to f32" if added else ""), make, **added)


def gemm(b: Bench) -> None:
    """Products."""
    for n in b.pick((4096, 8192), (64,)):
        for layout in ("nt", "nn", "tn", "tt"):
            square(b, f"gemm/{layout}/{n}", n, layout)
    inner, out = b.pick(4096, 64), 2 * b.pick(14336, 96)
    for rows in b.pick((1, 64), (1, 4)):

        def make(rows=rows):
            x, w = b.normal(rows, inner), b.normal(out, inner)
            return lambda: F.linear(x, w)

        b.item(f"gemm/rows/{rows}", f"{rows} x {inner} x {out}, bf16", make)


def lora(b: Bench) -> None:
    """A linear map with a low-rank update, as PEFT composes it."""
    rows, inner, out, rank = b.pick((8192, 4096, 14336, 16), (24, 64, 96, 8))
    shape = f"{rows} x {inner} x {out}, rank {rank}, bf16"

    def linear(x, w, a, up):
        return F.linear(x, w) + 2.0 * F.linear(F.linear(x, a), up)

    def tensors(grad):
        return (
            b.normal(rows, inner, grad=grad),
            b.normal(out, inner, scale=0.02),
            b.normal(rank, inner, scale=0.02, grad=grad),
            b.normal(out, rank, scale=0.02, grad=grad),
        )

    def forward(function):
        inputs = tensors(False)
        return lambda: function(*inputs)

    def backward(function):
        inputs = tensors(True)
        y, dy = function(*inputs), b.normal(rows, out)
        trained = [t for t in inputs if t.requires_grad]
        return lambda: torch.autograd.grad(y, trained, dy, retain_graph=True)

    b.variants("lora_linear/forward", shape, linear, forward)
    b.item("lora_linear/backward", shape, lambda: backward(linear))


def attention(b: Bench) -> None:
    """scaled_dot_product_attention, by each of its backends that takes the shape."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backends = {"sdpa": None}
    if b.clock.cuda:
        backends = {"sdpa flash": SDPBackend.FLASH_ATTENTION, "sdpa cuDNN": SDPBackend.CUDNN_ATTENTION}
    whole = {
        "/128": (16, 16, 128), "/128_grouped": (32, 8, 128), "/64": (32, 32, 64), "/256": (16, 8, 256),
    }
    for suffix, (heads, kv_heads, size) in whole.items():
        count, length = b.pick((2, 8192), (2, 70))
        if b.tiny:
            heads, kv_heads = 2 * heads // kv_heads, 2
        shape = f"{count} x {length} tokens, {heads} heads over {kv_heads} of {size}, causal, bf16"

        def inputs(grad, heads=heads, kv_heads=kv_heads, size=size, count=count, length=length):
            # (batch, length, heads, size), seen as (batch, heads, length, size): how a model has them.
            return [
                b.normal(count, length, h, size).transpose(1, 2).detach().requires_grad_(grad)
                for h in (heads, kv_heads, kv_heads)
            ]

        for library, backend in backends.items():

            def run(qkv, backend=backend, grouped=heads != kv_heads):
                with sdpa_kernel(backend) if backend else torch.enable_grad():
                    return F.scaled_dot_product_attention(*qkv, is_causal=True, enable_gqa=grouped)

            def forward(run=run, inputs=inputs):
                qkv = inputs(False)
                return lambda: run(qkv)

            def backward(run=run, inputs=inputs):
                qkv = inputs(True)
                out = run(qkv)
                dout = torch.randn_like(out)
                return lambda: torch.autograd.grad(out, qkv, dout, retain_graph=True)

            b.item(f"attention/forward{suffix}", shape, forward, library=library)
            b.item(f"attention/backward{suffix}", shape, backward, library=library)

    decoding = {
        "attention/decode": b.pick((64, 4096, 32, 8, 128), (3, 70, 4, 2, 128)),
        "attention/decode_long": b.pick((1, 32768, 32, 8, 128), (1, 1100, 4, 2, 128)),
    }
    for name, (count, length, heads, kv_heads, size) in decoding.items():

        def decode(count=count, length=length, heads=heads, kv_heads=kv_heads, size=size):
            q = b.normal(count, 1, heads, size).transpose(1, 2)
            k, v = (b.normal(count, length, kv_heads, size).transpose(1, 2) for _ in range(2))
            return lambda: F.scaled_dot_product_attention(q, k, v, enable_gqa=True)

        shape = f"1 token x {count} over {length} keys, {heads} heads over {kv_heads} of {size}, bf16"
        b.item(name, shape, decode, library="sdpa")


def lm_head(b: Bench) -> None:
    """Loss and gradients of the LM head: as transformers computes them, and by Liger Kernel."""
    tokens, size, vocabulary = b.pick((16384, 4096, 131072), (16, 64, 1000))
    shape = f"{tokens} tokens x {size} x {vocabulary}, bf16"

    def make(loss, trained):
        hidden = b.normal(tokens, size, grad=True)
        weight = b.normal(vocabulary, size, scale=0.02, grad=trained)
        targets = torch.randint(0, vocabulary, (tokens,), device=b.device)
        inputs = [hidden, weight] if trained else [hidden]
        return lambda: torch.autograd.grad(loss(hidden, weight, targets), inputs)

    def eager(hidden, weight, targets):
        return F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum")

    def liger(hidden, weight, targets):
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        return LigerFusedLinearCrossEntropyLoss(reduction="sum")(weight, hidden, targets)

    losses = {"torch": eager}
    if installed("liger_kernel") and b.clock.cuda:
        losses["liger"] = liger
    losses["torch.compile"] = torch.compile(eager)
    for library, loss in losses.items():
        b.item("lm_head/loss_and_gradient", shape, lambda loss=loss: make(loss, True), library=library)
        name, frozen = "lm_head/frozen", f"{shape}, no gradient of the head"
        b.item(name, frozen, lambda loss=loss: make(loss, False), library=library)
    rows, vocabulary = b.pick((64, 131072), (3, 1000))

    def sampling():
        logits = b.normal(rows, vocabulary, dtype=F32)

        def run():
            top, at = torch.topk(logits / 0.8, 50)
            probabilities = top.softmax(-1)
            beyond = probabilities.cumsum(-1) - probabilities >= 0.95
            drawn = torch.multinomial(probabilities.masked_fill(beyond, 0.0), 1)
            return at.gather(-1, drawn)

        return run

    b.item("sampling", f"{rows} rows of {vocabulary}, f32", sampling)


def swiglu(b: Bench) -> None:
    """y = silu(gate) up."""
    rows, width = b.pick((8192, 16384), (6, 96))
    shape = f"{rows} x {width}, bf16"

    def unit(gate, up):
        return F.silu(gate) * up

    def make(function, forward, backward):
        gate, up = (b.normal(rows, width, grad=backward) for _ in range(2))
        dy = b.normal(rows, width)
        if not backward:
            return lambda: function(gate, up)
        if forward:
            return lambda: torch.autograd.grad(function(gate, up), [gate, up], dy)
        y = function(gate, up)
        return lambda: torch.autograd.grad(y, [gate, up], dy, retain_graph=True)

    ways = {"forward": (True, False), "backward": (False, True), "both": (True, True)}
    functions = {"torch": unit}
    if installed("liger_kernel") and b.clock.cuda:
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction

        functions["liger"] = LigerSiLUMulFunction.apply
    functions["torch.compile"] = torch.compile(unit)
    for library, function in functions.items():
        for name, way in ways.items():
            # What Liger's backward writes over cannot be used twice.
            if (library, name) != ("liger", "backward"):
                b.item(f"swiglu/{name}", shape, lambda f=function, way=way: make(f, *way), library=library)


def rms_norm(b: Bench) -> None:
    """RMSNorm."""
    rows, width = b.pick((32768, 4096), (6, 64))
    shape = f"{rows} x {width}, bf16"

    def norm(x, w):
        return F.rms_norm(x, (width,), w, 1e-6)

    def forward(function):
        x, w = b.normal(rows, width), b.normal(width)
        return lambda: function(x, w)

    def backward(function, trained=True):
        x, w, dy = b.normal(rows, width, grad=True), b.normal(width, grad=trained), b.normal(rows, width)
        y, inputs = function(x, w), [x, w] if trained else [x]
        return lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True)

    b.variants("rms_norm/forward", shape, norm, forward)
    b.variants("rms_norm/backward", shape, norm, backward)
    frozen = f"{shape}, no gradient of the weight"
    b.variants("rms_norm/backward_frozen", frozen, norm, lambda f: backward(f, False))


def nf4(b: Bench) -> None:
    """Dequantising, by bitsandbytes."""
    if not installed("bitsandbytes"):
        return
    n = b.pick(1 << 28, 1 << 10)

    def make():
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit

        packed, state = quantize_4bit(b.normal(n // 64, 64), blocksize=64, quant_type="nf4")
        return lambda: dequantize_4bit(packed, state)

    b.item("nf4/dequantise", f"{n} elements to bf16", make, library="bitsandbytes")


def optimizer(b: Bench) -> None:
    """AdamW, and the norm of gradients."""
    n = b.pick(1 << 27, 1 << 10)

    def adamw():
        p = torch.nn.Parameter(b.normal(n, dtype=F32, scale=0.02))
        p.grad = b.normal(n, dtype=F32, scale=1e-3)
        fused = torch.optim.AdamW([p], lr=1e-4, weight_decay=0.01, fused=True)
        return fused.step

    b.item("adamw", f"{n} elements, f32 masters of bf16", adamw, library="torch fused", note="without the bf16 copy")
    n = b.pick(1 << 28, 1 << 10)

    def norm():
        g = b.normal(n, dtype=F32)
        return lambda: torch.linalg.vector_norm(g)

    b.item("grad_norm", f"{n} elements, f32", norm)


def moves(b: Bench) -> None:
    """Rotations, embeddings, casts, sums."""
    tokens, width, heads, size = b.pick((32768, 4096, 32, 128), (6, 64, 2, 32))

    def rotate(x, cos, sin):
        half = size // 2
        turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
        return x * cos + turned * sin

    def rope(function):
        x, cos, sin = b.normal(tokens, heads, size), b.normal(tokens, 1, size), b.normal(tokens, 1, size)
        return lambda: function(x, cos, sin)

    b.variants("rope", f"{tokens} x {heads} x {size}, bf16", rotate, rope)
    vocabulary = b.pick(131072, 100)
    shape = f"{tokens} tokens of {vocabulary} x {width}, bf16"

    def embedding(backward):
        table = b.normal(vocabulary, width, grad=backward)
        ids = torch.arange(tokens, device=b.device) * 2654435761 % vocabulary
        if not backward:
            return lambda: F.embedding(ids, table)
        out, dout = F.embedding(ids, table), b.normal(tokens, width)
        return lambda: torch.autograd.grad(out, table, dout, retain_graph=True)

    b.item("embedding/forward", shape, lambda: embedding(False))
    b.item("embedding/backward", shape, lambda: embedding(True), note="a new bf16 gradient, not added to f32")
    n = b.pick(1 << 27, 1 << 10)
    for name, source, target in (("f32_to_bf16", F32, BF16), ("bf16_to_f32", BF16, F32)):

        def cast(source=source, target=target):
            x = b.normal(n, dtype=source)
            return lambda: x.to(target)

        b.item(f"cast/{name}", f"{n} elements", cast)

    def add():
        x, y = b.normal(n), b.normal(n)
        return lambda: x + y

    b.item("add", f"{n} elements, bf16", add)


ALL = (card, gemm, lora, attention, lm_head, swiglu, rms_norm, nf4, optimizer, moves)


def main() -> None:
    """Runs what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", default="", help="beginnings of names, with commas between")
    parser.add_argument("--tiny", action="store_true", help="the emulator's shapes")
    parser.add_argument("--compile", action="store_true", help="torch.compile only")
    args = parser.parse_args()
    args.only = [prefix for prefix in args.only.split(",") if prefix]
    torch.manual_seed(0)
    bench = Bench(args)
    if bench.clock.cuda:
        emit("torch", "about", torch.cuda.get_device_name(), torch=torch.__version__, cuda=torch.version.cuda)
    for group in ALL:
        group(bench)


if __name__ == "__main__":
    main()
