"""Small and odd inputs for each kernel of `kernels.cuda`: CASES[name]() gives pairs (arguments, options).

The emulator is slow, so sizes are the least that reach every line: one more than a tile, no rows, a stride, a transposed array,
another type. The expected results are the reference's.
"""

import itertools

import numpy as np

from kernels import reference

rng = np.random.default_rng(0)


def normal(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def matmul_cases():
    for m, k, n in ((1, 1, 1), (5, 7, 3), (0, 2, 3), (3, 0, 2), (66, 17, 5), (64, 20, 64)):
        for turned_a, turned_b in itertools.product((False, True), repeat=2):
            if m > 60 and turned_a != (turned_b if m == 64 else not turned_b):
                continue
            a = normal(k, m).T if turned_a else normal(m, k)
            b = normal(n, k).T if turned_b else normal(k, n)
            yield (a, b), {}
    for a, b in (((2,), (2,)), ((1,), (3,)), ((), (2,)), ((2, 1), (3,)), ((2, 3), (3,))):
        yield (normal(*a, 3, 5), normal(*b, 5, 4)), {}
    yield (normal(6, 10)[::2, ::2], np.broadcast_to(normal(5, 1), (5, 4))), {}
    yield (normal(3, 70), normal(70, 2)), {}  # few elements of a long sum: it is cut into parts
    for activation, bias in itertools.product((None, "relu", "gelu", "gelu_tanh"), (None, normal(4), normal(3, 1))):
        yield (normal(3, 5), normal(5, 4)), {"bias": bias, "activation": activation}
    yield (normal(3, 5), normal(5, 4)), {"out": normal(3, 4), "bias": normal(4)}
    yield (normal(3, 5), normal(5, 4)), {"out": normal(4, 3).T}
    yield (normal(3, 5).astype(np.float64), normal(5, 4).astype(np.float64)), {"bias": normal(4).astype(np.float64)}
    yield (np.arange(6).reshape(2, 3), np.arange(6).reshape(3, 2)), {}


def attention_cases():
    def dead(t, s):
        mask = np.where(normal(t, s) < 0, -np.inf, 0).astype(np.float32)
        mask[:2] = -np.inf  # rows that may attend to nothing
        return mask

    for q_lead, k_lead, t, s, d, e, causal, mask in (
        ((), (), 1, 1, 1, 1, True, None),
        ((2,), (2,), 1, 9, 32, 32, False, normal(2, 1, 9)),  # one query
        ((), (), 1, 6, 64, 60, False, dead(1, 6)),
        ((1,), (1,), 35, 40, 8, 5, False, None),  # two tiles of keys
        ((1,), (1,), 66, 34, 32, 32, True, None),  # two tiles of queries as well
        ((2,), (), 3, 4, 6, 6, False, dead(3, 4)),
        ((2, 2), (2, 2), 3, 5, 4, 4, False, normal(2, 1, 1, 5)),
        ((2, 2), (2, 2), 3, 5, 4, 4, True, normal(1, 2, 3, 1)),
        ((1,), (1,), 3, 4, 64, 64, True, None),
        ((1,), (1,), 3, 4, 128, 100, False, None),
        ((1,), (1,), 3, 5, 130, 4, True, dead(3, 5)),  # no kernel is so wide
        ((1,), (1,), 0, 5, 4, 4, False, None),
        ((1,), (1,), 4, 0, 4, 4, False, None),
    ):
        arrays = normal(*q_lead, t, d), normal(*k_lead, s, d), normal(*k_lead, s, e)
        yield arrays, {"causal": causal, "mask": mask, "scale": None if t > 3 else 0.5}
    yield tuple(np.moveaxis(normal(1, 5, 2, 8), 1, 2) for _ in range(3)), {"causal": True}
    yield tuple(normal(2, 5, 4) for _ in range(3)), {"dropout_p": 0.4, "seed": 9, "stream": 1, "causal": True}


def attention_backward_cases():
    for i, ((q, k, v), options) in enumerate(attention_cases()):
        if i == 3:
            options |= {"causal": True}  # tiles that are passed over, wholly and in part
        out, statistics = reference.attention(q, k, v, **options)
        yield (normal(*out.shape), q, k, v, out, statistics), options
    q, k, v = normal(2, 3, 4), normal(1, 5, 4), normal(5, 4)
    into = [np.empty_like(x) for x in (q, k, v)]
    noise = {"dropout_p": 0.4, "seed": 9}
    yield (normal(2, 3, 4), q, k, v, *reference.attention(q, k, v)), {"into": into}
    yield (normal(2, 3, 4), q, k, v, *reference.attention(q, k, v, **noise)), noise
    q, k, v, mask = normal(2, 3, 4), normal(2, 5, 4), normal(2, 5, 4), normal(2, 3, 5)
    yield (normal(2, 3, 4), q, k, v, *reference.attention(q, k, v, mask=mask)), {"mask": mask, "mask_grad": True}


def images():
    """x, w, geometry"""
    for n, c, size, o, kernel, stride, padding, dilation, groups in (
        (2, 3, (5, 6), 4, (3, 3), (1, 1), (1, 1), (1, 1), 1),
        (2, 4, (6, 5), 6, (3, 2), (2, 1), (1, 1), (1, 1), 2),
        (1, 2, (9, 8), 2, (2, 3), (3, 2), (2, 0), (2, 1), 1),
        (1, 3, (7, 7), 3, (2, 2), (3, 3), (0, 0), (1, 1), 3),  # pixels that no window meets
        (2, 3, (9,), 4, (3,), (2,), (1,), (1,), 1),
        (0, 3, (5, 6), 4, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    ):
        geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        yield normal(n, c, *size), normal(o, c // groups, *kernel), geometry


def conv_cases():
    for x, w, geometry in images():
        yield (x, w), geometry


def conv_input_grad_cases():
    for x, w, geometry in images():
        yield (normal(*reference.conv(x, w, **geometry).shape), w, x.shape[2:]), geometry


def conv_weight_grad_cases():
    for x, w, geometry in images():
        yield (x, normal(*reference.conv(x, w, **geometry).shape), w.shape[2:]), geometry


def row_inputs():
    for n, width in ((1, 1), (3, 5), (2, 130), (0, 4)):
        yield normal(n, width)
    special = 3 * normal(4, 6)
    special[1], special[2, 3] = -np.inf, -np.inf
    yield special
    yield normal(4, 10)[:, ::2]


def einsum_cases():
    for equation, *shapes in (
        ("ab,bc->ac", (3, 4), (4, 2)),
        ("bhqd,bhkd->bhqk", (2, 1, 3, 4), (2, 1, 5, 4)),
        ("ab->b", (3, 4)),
        ("a,b,ab->", (3,), (4,), (3, 4)),
        ("ab,b->a", (0, 4), (4,)),
    ):
        arrays = [normal(*shape) for shape in shapes]
        yield (equation, *arrays), {}
        yield (equation, *[x.astype(np.float64) for x in arrays]), {}


def sum_over_cases():
    for axes in ((0,), (1,), (0, 2), (0, 1, 2), ()):
        yield (normal(3, 4, 5), axes, 7), {}
        yield (normal(5, 4, 3).astype(np.float64).T, axes), {}
    yield (normal(2, 0, 3), (1,)), {}


def softmax_cases():
    for x in row_inputs():
        yield (x,), {"axis": -1}
        yield (x,), {"axis": 0}
    yield (normal(2, 3, 4),), {"axis": 1}
    yield (normal(3, 4).astype(np.float64),), {}


def cross_entropy_cases():
    for x in row_inputs():
        target = np.arange(len(x)) % x.shape[1]
        target[1::3] = -100
        yield (x, target), {}
    yield (normal(3, 4), np.array([1, 0, 3], np.int32)), {"ignore_index": 0}


def cross_entropy_backward_cases():
    for (x, target), options in cross_entropy_cases():
        yield (normal(len(x)), x, target, reference.cross_entropy(x, target, **options)[1]), options


def norm_inputs():
    for n, width in ((1, 1), (3, 5), (2, 130), (70, 33)):
        yield normal(n, width), normal(width), normal(width)
    yield normal(5, 4)[:, ::2], normal(2), normal(2)
    yield normal(3, 4).astype(np.float64), normal(4).astype(np.float64), normal(4).astype(np.float64)


def layer_norm_cases():
    for arguments in norm_inputs():
        yield arguments, {"eps": 1e-5}


def layer_norm_backward_cases():
    for x, w, b in norm_inputs():
        yield (normal(*x.shape).astype(x.dtype), x, w, *reference.layer_norm(x, w, b)[1:]), {}


def rms_norm_cases():
    for x, w, _ in norm_inputs():
        yield (x, w), {"eps": 1e-6}


def rms_norm_backward_cases():
    for x, w, _ in norm_inputs():
        yield (normal(*x.shape).astype(x.dtype), x, w, reference.rms_norm(x, w)[1]), {}


def batch_norm_cases():
    for shape in ((3, 2), (2, 3, 5), (2, 3, 4, 5), (70, 1, 3)):
        yield (normal(*shape), normal(shape[1]), normal(shape[1])), {}


def group_norm_cases():
    for shape, groups in (((3, 2), 1), ((2, 6, 5), 3), ((2, 4, 4, 5), 4), ((70, 1, 3), 1), ((1, 2, 140), 2)):
        yield (normal(*shape), normal(shape[1]), normal(shape[1]), groups), {"eps": 1e-4}
    yield (normal(2, 8, 3)[:, ::2], normal(4), normal(4), 2), {}
    yield tuple(x.astype(np.float64) for x in (normal(2, 4, 3), normal(4), normal(4))) + (2,), {}


def group_norm_backward_cases():
    for (x, w, b, groups), options in group_norm_cases():
        yield (normal(*x.shape).astype(x.dtype), x, w, *reference.group_norm(x, w, b, groups, **options)[1:]), {}


def batch_norm_backward_cases():
    for (x, w, b), _ in batch_norm_cases():
        yield (normal(*x.shape), x, w, *reference.batch_norm(x, w, b)[1:]), {}


def each():
    yield normal(7)
    yield 4 * normal(3, 200)
    yield np.array([-100.0, 100.0, 0.0, -0.0], np.float32)
    yield normal(4, 6)[:, ::2]
    yield normal(0, 3)
    yield np.asarray(normal(1)[0])
    yield normal(3).astype(np.float64)


def map_cases(*options):
    def cases():
        for x, chosen in itertools.product(each(), options or ({},)):
            yield (x,), chosen

    return cases


def map_backward_cases(*options):
    def cases():
        for x, chosen in itertools.product(each(), options or ({},)):
            yield (np.asarray(normal(*x.shape)).astype(x.dtype), x), chosen

    return cases


EXTREME = np.array([-np.inf, np.inf, np.nan, -100, 100, 0], np.float32)
SOFTPLUS = {}, {"beta": 0.5, "threshold": 1.0}, {"beta": -1.0, "threshold": np.inf}
ELU = {}, {"alpha": 0.3, "scale": 2.0, "rate": 1.5}, {"rate": -0.01}


def curve_cases(*options):
    def cases():
        yield from map_cases(*options)()
        for chosen in options or ({},):
            yield (EXTREME,), chosen

    return cases


def curve_backward_cases(*options, of=lambda x: x):
    def cases():
        for (dy, x), chosen in map_backward_cases(*options)():
            yield (dy, np.asarray(of(x))), chosen
        for chosen in options or ({},):
            yield (np.ones(6, np.float32), of(EXTREME)), chosen

    return cases


def glu_cases():
    for shape, axis in (((4,), 0), ((3, 10), -1), ((2, 6, 5), 1), ((4, 3), 0), ((0, 4), 1)):
        yield (normal(*shape), axis), {}
    yield (normal(6, 5).T, -1), {}
    yield (normal(4, 6).astype(np.float64), 0), {}


def glu_backward_cases():
    for (x, axis), _ in glu_cases():
        yield (normal(*reference.glu(x, axis).shape).astype(x.dtype), x, axis), {}


def softmax_backward_cases():
    for x in row_inputs():
        for axis in (-1, 0):
            yield (normal(*x.shape), reference.softmax(x, axis), axis), {}
    yield tuple(normal(2, 3).astype(np.float64) for _ in range(2)), {}


def dropout_cases():
    for x, p in itertools.product(each(), (0.0, 0.3, 1.0)):
        yield (x,), {"p": p, "seed": 12345678901, "stream": 7}
    yield (normal(9),), {"p": 0.5, "seed": 2**64 - 5, "stream": 2**63 + 1}


def column_sums_cases():
    for shape in ((70, 40), (1, 3), (5, 0), (0, 4)):
        yield (normal(*shape),), {}
    yield (normal(6, 5).astype(np.float64).T,), {}


def embedding_cases():
    index = np.array([[0, 3, -1], [2, 2, 0]])
    for shape in ((4, 3), (4, 2, 2)):
        yield (normal(*shape), index), {}
    yield (normal(4, 3), index.astype(np.int32)), {}
    yield (normal(4, 3), np.zeros((0,), np.int64)), {}
    yield (np.arange(12).reshape(4, 3), index), {}


def scatter_add_cases():
    index = np.array([[0, 3, -1], [2, 2, 0], [0, 0, 3]])
    for shape in ((5, 3), (5,), (5, 2, 2)):
        yield (normal(*shape), index, normal(3, 3, *shape[1:])), {}
    yield (normal(5, 3), np.zeros(0, np.int64), normal(0, 3)), {}
    yield (normal(3, 5).T, index, normal(3, 3, 3)), {}
    yield (normal(5, 3).astype(np.float64), index, normal(3, 3, 3).astype(np.float64)), {}


def adam_cases():
    for decay in (0.0, 0.1):
        options = {"step": 3, "lr": 0.01, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": decay}
        shapes = (1,), (300,), (0,), (), (2, 3)
        *arrays, squares = ([np.asarray(normal(*shape)) for shape in shapes] for _ in range(4))
        yield (*arrays, [np.abs(v, out=v) for v in squares]), options
    turned = [normal(3, 2).T], [normal(2, 3)], [normal(2, 3)], [abs(normal(2, 3))]
    yield turned, {**options, "step": 1}
    yield tuple([x.astype(np.float64) for x in xs] for xs in turned), options


def sum_of_squares_cases():
    yield ([normal(3), normal(20, 500), normal(0), normal(6, 5)[:, ::2]],), {}
    yield ([normal(3).astype(np.float64)],), {}


def scale_cases():
    yield ([normal(3), normal(2, 5)], 0.3), {}


def leaky_relu_cases():
    for x, slope in itertools.product(each(), (0.0, 0.2)):
        yield (x, slope), {}
    yield (np.array([-np.inf, np.inf, np.nan, 0.0], np.float32), 0.0), {}


def leaky_relu_backward_cases():
    for (x, slope), _ in leaky_relu_cases():
        yield (np.asarray(normal(*x.shape)).astype(x.dtype), reference.leaky_relu(x, slope), slope), {}


def binary_cross_entropy_cases():
    for x in each():
        yield (x, np.asarray(abs(normal(*x.shape))).astype(x.dtype)), {}


def binary_cross_entropy_backward_cases():
    for (x, t), _ in binary_cross_entropy_cases():
        yield (np.asarray(normal(*x.shape)).astype(x.dtype), x, t), {}


def nearest_cases():
    yield (normal(2, 3, 4, 5), np.arange(8) // 2, np.arange(10) // 2), {}
    yield (normal(1, 2, 4, 5)[..., ::2], np.array([0, 3, 3]), np.array([1, 2])), {}
    yield (normal(0, 2, 4, 5), np.array([0, 3]), np.array([1, 2])), {}


def nearest_backward_cases():
    for (x, i, j), _ in nearest_cases():
        yield (normal(*reference.nearest(x, i, j).shape), i, j, x.shape[-2:]), {}


def attention_dropout_cases():
    for shape, p in (((2, 3, 5, 4), 0.3), ((7, 3), 0.5), ((1, 2), 1.0)):
        yield (normal(*shape),), {"p": p, "seed": 2**40 + 3, "stream": 2}


GELUS = {"approximate": "none"}, {"approximate": "tanh"}


def row_constant_cases():
    return [((normal(n, m), normal(n)), {}) for n, m in ((3, 5), (1, 300), (7, 1), (0, 4))]


def squared_error_cases():
    return [((normal(*shape), normal(*shape), divisor), {}) for shape, divisor in (((3, 5), 1), ((300,), 300.0))]


WINDOWS = ((3, 2), {"stride": (2, 1), "padding": (1, 0)})  # of 5 × 6 pixels: 3 × 5 results


def max_pool_cases():
    kernel, how = WINDOWS
    return [((normal(2, 3, 5, 6), (3, 5), kernel), {**how, "dilation": (1, 1)})]


def max_pool_backward_cases():
    (x, counts, kernel), how = max_pool_cases()[0]
    return [((normal(2, 3, 3, 5), reference.max_pool(x, counts, kernel, **how)[1], (5, 6)), {})]


def avg_pool_cases():
    kernel, how = WINDOWS
    return [((normal(2, 3, 5, 6), np.abs(normal(3, 5)), kernel), how)]


def avg_pool_backward_cases():
    kernel, how = WINDOWS
    return [((normal(2, 3, 3, 5), np.abs(normal(3, 5)), (5, 6), kernel), how)]


CASES = {
    "add_to_rows": row_constant_cases,
    "scale_rows": row_constant_cases,
    "squared_error": squared_error_cases,
    "sign": map_cases(),
    "max_pool": max_pool_cases,
    "max_pool_backward": max_pool_backward_cases,
    "avg_pool": avg_pool_cases,
    "avg_pool_backward": avg_pool_backward_cases,
    "matmul": matmul_cases,
    "einsum": einsum_cases,
    "sum_over": sum_over_cases,
    "attention": attention_cases,
    "attention_backward": attention_backward_cases,
    "conv": conv_cases,
    "conv_input_grad": conv_input_grad_cases,
    "conv_weight_grad": conv_weight_grad_cases,
    "column_sums": column_sums_cases,
    "softmax": softmax_cases,
    "log_softmax": softmax_cases,
    "cross_entropy": cross_entropy_cases,
    "cross_entropy_backward": cross_entropy_backward_cases,
    "layer_norm": layer_norm_cases,
    "layer_norm_backward": layer_norm_backward_cases,
    "rms_norm": rms_norm_cases,
    "rms_norm_backward": rms_norm_backward_cases,
    "batch_norm": batch_norm_cases,
    "batch_norm_backward": batch_norm_backward_cases,
    "group_norm": group_norm_cases,
    "group_norm_backward": group_norm_backward_cases,
    "sigmoid": curve_cases(),
    "sigmoid_backward": curve_backward_cases(of=reference.sigmoid),
    "tanh_backward": curve_backward_cases(of=np.tanh),
    "softplus": curve_cases(*SOFTPLUS),
    "softplus_backward": curve_backward_cases(*SOFTPLUS),
    "elu": curve_cases(*ELU),
    "elu_backward": curve_backward_cases(*ELU),
    "mish": curve_cases(),
    "mish_backward": curve_backward_cases(),
    "glu": glu_cases,
    "glu_backward": glu_backward_cases,
    "softmax_backward": softmax_backward_cases,
    "log_softmax_backward": softmax_backward_cases,
    "gelu": map_cases(*GELUS),
    "gelu_backward": map_backward_cases(*GELUS),
    "silu": curve_cases(),
    "silu_backward": curve_backward_cases(),
    "erf": map_cases(),
    "dropout": dropout_cases,
    "embedding": embedding_cases,
    "scatter_add": scatter_add_cases,
    "adam": adam_cases,
    "adamw": adam_cases,
    "sum_of_squares": sum_of_squares_cases,
    "scale": scale_cases,
    "leaky_relu": leaky_relu_cases,
    "leaky_relu_backward": leaky_relu_backward_cases,
    "binary_cross_entropy": binary_cross_entropy_cases,
    "binary_cross_entropy_backward": binary_cross_entropy_backward_cases,
    "nearest": nearest_cases,
    "nearest_backward": nearest_backward_cases,
    "attention_dropout": attention_dropout_cases,
}
SLOW = {  # cases that the emulator computes in the deep run only: what they reach, the others reach in part
    "attention": (1, 4, 6, 7, 13),
    "attention_backward": (1, 2, 4, 6, 7, 9, 13, 14),
}
IN_PLACE = {"scatter_add": (0,), "adam": (0, 2, 3), "adamw": (0, 2, 3), "scale": (0,)}
