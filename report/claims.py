"""The claims of the older report in its own sense, as data: words, and the contrasts that decide.

Numbers are those of its list of 26; a letter marks the parts of a claim that says several things.
Claims without contrasts are arguments: nothing that was measured here decides them.
"""

from itertools import pairwise

from report.evidence import (
    BEST,
    NO_WORSE,
    POSITIVE,
    SAME,
    BestOfGrid,
    Cell,
    Claim,
    Contrast,
    Plateau,
    TimeSaved,
    cell,
)

RATES = (0.0, 0.2, 0.4, 0.6, 0.8)
NETWORKS = ("MLP", "CNN")
ABLATION, FIVE, TEN = "128_0.001_0.2, four cells", "128, 0.001, five rates", "the ten plotted best"
AT_BASE = {"MLP": "1024_0.001_0.2", "CNN": "128_0.001_0.2"}


def base(network: str, no_norm: bool = False, no_dropout: bool = False) -> Cell:
    """A cell of the ablation."""
    return cell(f"{network}_ablation", without_BatchNorm=no_norm, without_dropout=no_dropout)


def of_norm(network: str, of: str, with_first: bool, bounds=POSITIVE) -> list[Contrast]:
    """With and without batch normalization, in both pairs of the ablation."""
    return [pair(network, text, of, with_first, bounds, base(network, False, other),
                 base(network, True, other))
            for other, text in ((False, ""), (True, ", no dropout"))]


def of_dropout(network: str, of: str, with_first: bool, bounds=POSITIVE) -> list[Contrast]:
    """With and without dropout, in both pairs of the ablation."""
    return [pair(network, text, of, with_first, bounds, base(network, other, False),
                 base(network, other, True))
            for other, text in ((False, ""), (True, ", no batch normalization"))]


def pair(network: str, text: str, of: str, with_first: bool, bounds, a: Cell, b: Cell) -> Contrast:
    sign = "with − without" if with_first else "without − with"
    return Contrast(f"{network}, {sign}{text}", (a, b) if with_first else (b, a), of, bounds)


def kind(rate: float, type: str) -> Cell:
    return cell("dimention", drop_rate=rate, dropout_type=type)


def size(n: int) -> Cell:
    return cell("batchsize", batch_size=n)


def rate(p: float) -> Cell:
    return cell("dropout", drop_rate=p)


def gain(study: str, rates: tuple, **values) -> tuple[Cell, Cell]:
    """The best drop rate above 0, and none."""
    return cell(study, drop_rate=rates, **values), cell(study, drop_rate=0.0, **values)


HIDDEN_SIZES = (50, 100, 200, 400, 800, 1600)
TRAIN_IMAGES = (1000, 2500, 5000, 10000, 20000, None)  # None: all 40,000
SMALL_BATCHES = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
PATCHES = (None, 16, 8, 4, 2, 1)  # pixels a side; None: the whole image
DROPPED, DECAYED = cell("weight_decay", drop_rate=(0.1, 0.2, 0.4, 0.6), weight_decay=0.0), cell(
    "weight_decay", weight_decay=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0))


def norm(n: int, without: bool = False, detached: bool = False) -> Cell:
    return cell("batch_norm", batch_size=n, without_BatchNorm=without, detach_statistics=detached)


def deep(layers: int, no_norm: bool, rate: float) -> Cell:
    """At the best of four learning rates."""
    return cell("depth", hidden_layers=layers, without_BatchNorm=no_norm, drop_rate=rate,
                learning_rate=(0.01, 0.003, 0.001, 0.0003))


def pooled(kind: str, behind: bool, rate: float | tuple = (0.2, 0.4, 0.6)) -> Cell:
    """Dropout behind max pooling, or before it."""
    return cell("pooling", dropout_type=kind, pool_first=behind, drop_rate=rate)


def noisy(rate: float | tuple, gaussian: bool) -> Cell:
    return cell("noise", drop_rate=rate, gaussian_dropout=gaussian)


def patches(network: str, side: int | None) -> Cell:
    return cell(f"{network}_shuffled_patches", shuffled_patches=side)


CLAIMS = (
    *(Claim(str(i), f"The best {n} is {AT_BASE[n].replace('_', ' / ')}",
            "its grid of 60, by validation loss",
            (BestOfGrid(cell(n, batch_size=b, learning_rate=0.001, drop_rate=0.2)),), main=BEST)
      for i, (n, b) in enumerate(zip(NETWORKS, (1024, 128), strict=True), 1)),
    Claim("3", "The CNN is much better than the MLP on the test set",
          "test accuracy and loss", tuple(
              Contrast(f"test {what}", cells, of, like="fingerprint") for what, cells, of in (
                  ("accuracy, CNN − MLP", (base("CNN"), base("MLP")), "test_acc"),
                  ("loss, MLP − CNN", (base("MLP"), base("CNN")), "test_loss"))), main=BEST),
    Claim("4", "On the plateau training loss lies clearly below validation loss, in most cases",
          TEN, (Plateau("MLP"), Plateau("CNN"))),
    Claim("5", "Some networks without normalization overfit in the end: validation loss rises",
          TEN, tuple(
              Contrast(f"{n}, rise of the validation loss without {what}", (base(n, *cells),),
                       "rise") for n in NETWORKS for what, cells in (
                  ("normalization", (True, False)), ("normalization and dropout", (True, True)),
                  ("dropout", (False, True)))), some=True),
    Claim("6", "Reasons: training and validation sets differ in distribution; late in training, "
               "without regularization, networks overfit", "–"),
    Claim("7", "Watching both losses helps to tune: stop early, raise weight decay, fewer epochs, "
               "a lower learning rate", "–"),
    Claim("8a", "The CNN wins by the neighbourhood of pixels", "–", (
        Contrast("CNN, whole images − shuffled pixels", (patches("CNN", None), patches("CNN", 1))),
        Contrast("lead on whole images − on shuffled pixels", (
            patches("CNN", None), patches("MLP", None), patches("CNN", 1), patches("MLP", 1)),
            like="epochs"))),
    Claim("8b", "… by sharing parameters, and by some invariance to shifts from pooling", "–"),
    Claim("9a", "Dropout improves the CNN's validation, in each pair", ABLATION,
          tuple(of_dropout("CNN", "val_acc", True))),
    Claim("9b", "Training of the CNN is clearly better without dropout", ABLATION,
          tuple(of_dropout("CNN", "train_acc", False))),
    Claim("10", "Dropout improves generalization and markedly reduces overfitting",
          "the gap of training and validation", tuple(
              Contrast(f"{n}, gap of the losses without − with", (base(n, False, True), base(n)),
                       "gap") for n in NETWORKS)),
    Claim("11a", "The MLP's validation is about the same with and without dropout", "ablation",
          tuple(of_dropout("MLP", "val_acc", True, SAME))),
    Claim("11b", "The CNN's is better with it", "ablation",
          tuple(of_dropout("CNN", "val_acc", True))),
    Claim("12", "Dropout is indispensable to the generalization of both networks",
          "its conclusion from 9 to 11: the gap", tuple(
              Contrast(f"{n}, gap of the losses without − with", (base(n, False, True), base(n)),
                       "gap") for n in NETWORKS)),
    Claim("13a", "Validation is better or nearly the same with batch normalization, in each pair",
          "ablation", tuple(each for n in NETWORKS for each in of_norm(
              n, "val_acc", True, (-NO_WORSE[n], float("inf"))))),
    Claim("13b", "Training is clearly better without batch normalization", "ablation",
          tuple(each for n in NETWORKS for each in of_norm(n, "train_acc", False))),
    Claim("14", "Batch normalization improves generalization and markedly reduces overfitting",
          "the gap", tuple(
              Contrast(f"{n}, gap of the losses without − with", (base(n, True), base(n)), "gap")
              for n in NETWORKS)),
    Claim("15a", "Batch normalization eases the training of deep networks", "–", tuple(
        Contrast(f"gain at 8 hidden layers − at 1, {text}", (
            deep(8, False, p), deep(8, True, p), deep(1, False, p), deep(1, True, p)))
        for p, text in ((0.0, "no dropout"), (0.2, "drop rate 0.2")))),
    Claim("15b", "Backpropagating through mean and variance matters", "–", (
        Contrast("batch 1024, with − detached", (norm(1024), norm(1024, detached=True))),
        Contrast("cost of detaching at 4096 − at 16", (
            norm(4096), norm(4096, detached=True), norm(16), norm(16, detached=True))))),
    Claim("16", "Running averages in buffers make single samples possible in evaluation", "–"),
    Claim("17a", "Dropping whole maps is slightly worse than dropping within maps", FIVE, tuple(
        Contrast(f"drop rate {p}, 1d − 2d", (kind(p, "1d"), kind(p, "2d"))) for p in RATES[1:])),
    Claim("17b", "… and with more layers it becomes clearly worse", "–"),
    Claim("17c", "… and it is worse where dropout stands behind pooling, too", "new here", (
        Contrast("each at its best rate, 1d − 2d", (pooled("1d", True), pooled("2d", True))),)),
    Claim("18", "Why: with whole maps dropped the network is harder to train and underfits", "–",
          tuple(Contrast(f"drop rate {p}, 1d − 2d", (kind(p, "1d"), kind(p, "2d")), "train_acc")
                for p in RATES[1:])),
    Claim("19a", "As the drop rate rises, training gets worse monotonically", "CNN", tuple(
        Contrast(f"{p} − {q}", (rate(p), rate(q)), "train_acc") for p, q in pairwise(RATES))),
    Claim("19b", "Validation peaks at 0.2 and then falls quickly", "CNN", tuple(
        Contrast(f"0.2 − {p}", (rate(0.2), rate(p))) for p in RATES if p != 0.2)),
    Claim("20a", "As batch size rises, training gets worse monotonically", "MLP, 0.001, drop 0",
          tuple(Contrast(f"{b} − {2 * b}", (size(b), size(2 * b)), "train_acc")
                for b in (512, 1024, 2048))),
    Claim("20b", "Validation first rises, then falls", "MLP, 0.001, drop 0", tuple(
        Contrast(f"best of 1024 and 2048 − {b}",
                 (cell("batchsize", batch_size=(1024, 2048)), size(b))) for b in (512, 4096))),
    Claim("21a", "Larger batches give batch normalization better statistics", "–"),
    Claim("21b", "… and that is good for inference", "–", (
        Contrast("gain of batch normalization at 4096 − at 16", (
            norm(4096), norm(4096, without=True), norm(16), norm(16, without=True))),)),
    Claim("22a", "Larger batches train a bit faster", "–", (TimeSaved("mlp"), TimeSaved("cnn"))),
    Claim("22b", "… but waste data and tend to saddle points; small ones bring noise, use the data "
                 "better and take longer", "–"),
    Claim("23", "Bagging: error (v + (k − 1) c) / k; at least as good as any member; independent "
                "errors gain", "–"),
    Claim("24", "Dropout is cheap bagging of exponentially many subnetworks with shared "
                "parameters; only independent training gives the full effect of bagging", "–"),
    Claim("25a", "Dropout beats weight decay", "–", tuple(
        Contrast(f"dropout − decay, {where}", (DROPPED, DECAYED), of, family=28, within=True)
        for where, of in (("last quarter", "val_acc"),))),
    Claim("25b", "Dropout costs capacity: its gain rises with the hidden layer", "–", (
        Contrast("gain at 1600 − at 50", (*gain("capacity", RATES[1:], hidden_size=1600),
                                          *gain("capacity", RATES[1:], hidden_size=50)),
                 family=4),)),
    Claim("25c", "Dropout helps little with very many or very few images", "–", tuple(
        Contrast(f"largest gain in between − at {end or 40000}", (), family=12, choices=tuple(
            (*gain("data_size", RATES[1:4], train_images=n),
             *gain("data_size", RATES[1:4], train_images=end)) for n in TRAIN_IMAGES[1:-1]))
        for end in (1000, None))),
    Claim("25d", "Dropout combines with weight decay", "–", (
        Contrast("both − dropout alone, each at its best", (cell(
            "decayed_dropout", drop_rate=(0.2, 0.4), weight_decay=(0.03, 0.1, 0.3, 1.0)),
            DROPPED)),)),
    Claim("26a", "Randomness is neither needed nor enough; the noise is on the content of hidden "
                 "units, not on the input", "–"),
    Claim("26b", "Gaussian noise of the same variance does as well as dropping", "new here", tuple(
        Contrast(f"dropout − noise, {text}", (noisy(rate, False), noisy(rate, True)), bounds=SAME)
        for text, rate in (("rate 0.2", 0.2), ("each at its best rate", (0.1, 0.2, 0.4, 0.6))))))
