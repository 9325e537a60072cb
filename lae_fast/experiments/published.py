"""The report's numbers, printed in its tables 1-9, in the units of this package's metrics: nats per image, accuracies as fractions.

The report's MSE, the losses of tables 4-7 and the accuracies of tables 4-6 are sums of minibatches' means divided by
the number of images, or more: they are too small by a factor that the report does not state. So they are quantities of
their own here, whose names end in `DIVIDED`. The losses under attack are per image.
"""

from __future__ import annotations

DIVIDED = "_divided"  # ends the name of a metric that the report has divided by what it does not state


def _fractions(*percent: float) -> tuple[float, ...]:
    return tuple(p / 100 for p in percent)


AUTOENCODERS = {  # (model, nz, T, mh) -> "BCE" (VAE: reconstruction + KL, LAE: reconstruction alone) and MSE
    ("vae", 2, 2, False): {"report_bce": 141.74278, "mse_divided": 0.00000732256},
    ("lae", 2, 2, False): {"report_bce": 136.040208, "mse_divided": 0.00000743449},
    ("vae", 8, 2, False): {"report_bce": 103.07547, "mse_divided": 0.00000317134},
    ("lae", 8, 2, False): {"report_bce": 85.917400, "mse_divided": 0.00000310958},
    ("vae", 16, 2, False): {"report_bce": 98.79791, "mse_divided": 0.00000257368},
    ("lae", 16, 2, False): {"report_bce": 68.15598, "mse_divided": 0.00000167048},
    ("lae", 2, 10, False): {"report_bce": 132.89959, "mse_divided": 0.00000716265},
    ("lae", 2, 50, False): {"report_bce": 134.36413, "mse_divided": 0.00000729323},
    ("lae", 2, 2, True): {"report_bce": 136.238208, "mse_divided": 0.00000748080},
}


def _codes(
    train_loss: float, train_accuracy: float, test_loss: float, test_accuracy: float
) -> dict[str, float]:
    return {
        "train_loss_divided": train_loss,
        "train_accuracy_divided": train_accuracy,
        "test_loss_divided": test_loss,
        "test_accuracy_divided": test_accuracy,
    }


CODES = {  # (model, nz, T, mh) -> a linear classifier on the model's codes
    ("vae", 2, 2, False): _codes(0.001352, 0.0005407, 0.001338, 0.0005586),
    ("lae", 2, 2, False): _codes(0.00173053, 0.0003460, 0.00166865, 0.00037973),
    ("vae", 8, 2, False): _codes(0.00074552, 0.00071939, 0.00074213, 0.0007355),
    ("lae", 8, 2, False): _codes(0.00085344, 0.00078394, 0.00061837, 0.00080696),
    ("vae", 16, 2, False): _codes(0.00082766, 0.00069669, 0.00080636, 0.00072118),
    ("lae", 16, 2, False): _codes(0.00149354, 0.00074028, 0.00086874, 0.00081385),
    ("lae", 2, 10, False): _codes(0.00183926, 0.000370808, 0.001644017, 0.00043382),
    ("lae", 2, 50, False): _codes(0.00186372, 0.000375255, 0.001683733, 0.00045005),
    ("lae", 2, 2, True): _codes(0.00150817, 0.00048625, 0.00147085, 0.00051563),
}

# (model, N), the columns of tables 7-9
TRAININGS = ((None, 0), ("lae", 2), ("vae", 2), ("lae", 5), ("vae", 5))

_CLASSIFIERS = {
    "loss_divided": (0.001153, 0.001747, 0.001770, 0.002130, 0.002134),
    "accuracy": _fractions(95.66, 94.21, 93.99, 92.91, 92.61),
}
_ATTACKED = {
    "accuracy_0": _fractions(95.66, 94.21, 93.99, 92.91, 92.61),
    "accuracy_0.01": _fractions(94.69, 93.03, 92.66, 91.31, 90.83),
    "accuracy_0.1": _fractions(70.85, 66.42, 63.40, 62.62, 60.89),
    "accuracy_0.2": _fractions(13.18, 11.31, 11.16, 10.60, 10.32),
    "accuracy_0.3": _fractions(0.16, 0.33, 0.35, 0.41, 0.41),
    "loss_0.01": (0.1702, 0.2523, 0.2630, 0.3044, 0.3114),
    "loss_0.1": (0.8187, 0.9044, 0.9968, 0.9958, 1.0703),
    "loss_0.2": (3.2136, 2.9268, 3.2381, 3.0319, 3.3443),
    "loss_0.3": (6.6067, 5.5999, 6.1211, 5.6184, 6.1619),
}
CLASSIFIERS, ATTACKED = (
    {training: {name: v[i] for name, v in printed.items()} for i, training in enumerate(TRAININGS)}
    for printed in (_CLASSIFIERS, _ATTACKED)
)
MADRY = {"accuracy_0": 0.9853, "accuracy_0.3": 0.9252}  # Madry et al. (2018), MNIST, PGD of 100 steps
