"""Arguments of commands that take seconds: a small training on the digits, and a short score of it."""

SMALL_RUN = [
    "--device",
    "cpu",
    "--dataset",
    "digits",
    "--nh",
    "16",
    "--depth",
    "1",
]  # on a CPU, where runs resume bit for bit
SHORT_SCORE = [
    "--images",
    "5",
    "--n-temperatures",
    "5",
    "--n-chains",
    "2",
    "--n-draws",
    "5",
    "--simulated",
    "5",
]
