"""Claims about training methods, one row each.

They follow the papers' abstracts and headline results; "TopK" and the others are
the recipes here at the same size, data and steps. The arms are in `site`,
`planted` and `causal`.
"""

from saejax.evals import faithfulness
from saejax.studies.claims.claim import (
  HIGHER,
  LOWER,
  SITE,
  Claim,
  Measure,
  at_common_l0,
  at_own_l0,
  both,
  each,
  log_of,
  mean_of,
)

LOG_FVU = "difference of log FVU"
ERROR = both(at_common_l0, LOG_FVU)
ERROR_AT_OWN_L0 = Measure(compare=at_own_l0)
ERROR_HERE = both(log_of("fvu"), LOG_FVU)
CONVERSION = each(
  mean_of("fvu"), mean_of("fvu_in_training"), "difference in FVU", -0.02
)
CUT_DOWN = each(log_of("fvu_at_{few}"), log_of("fvu_at_{few}", k="high"))
CUT_TO_SAME = each(
  log_of("fvu_at_{same}"), log_of("fvu", k="same"), margin=-0.01
)
DEAD = both(mean_of("dead"), "difference in dead latents", 0.005)
DEAD_AT_MID = both(mean_of("dead", k="mid"), DEAD.unit, DEAD.margin)
SHARED = both(mean_of("shared", k="mid"), "difference in shared latents")
SHARED_HERE = both(mean_of("shared"), SHARED.unit)
COSINE = both(
  mean_of("max_cosine", k="mid"), "difference in mean max cosine", 0.005
)
SHRINKAGE = both(
  mean_of("shrinkage"), "difference in |1 - best stretch|", 0.002
)
FLOPS = both(log_of("encode_flops", k="mid"), "difference of log FLOPs", 0.05)
RECALL_OVER_PCA = each(
  mean_of("recall"),
  mean_of("pca_recall"),
  "difference in mean max cosine with planted directions",
)
PARENTS = both(
  mean_of("parent_recall"), "difference in recall of parents whose child is on"
)
ALIKE = both(
  mean_of("similarity"), "difference in mean max cosine between seeds"
)
RARE_ERROR = both(log_of("rare_error"), "difference of log error")
MEAN_ERROR = both(log_of("mean_error"), "difference of log error")
FOUR_AGAINST_ONE = each(log_of("fvu", size=4), log_of("fvu", size=1))
FOUR_AGAINST_WIDER = each(log_of("fvu", size=4), log_of("fvu", size=4))
LAYERS = both(log_of("mean_layer_fvu"), LOG_FVU)
WORST_LAYER = both(log_of("worst_layer_fvu"), LOG_FVU)
FAKE = both(
  mean_of("fake"),
  f"difference in latents on above {faithfulness.FFR_TAU:.0%} of random tokens",
)


# Why a comparison cannot judge a claim as it is set up.
OTHER_SITES = "other sites contradict it"
EARLY = "300 steps end before the biases have moved"
OWN_POSTERIOR = "neither the posterior nor the weight is the paper's"
CENTROIDS = "starts at centroids of the data, TopK at random directions"


def _row(
  recipe: str,
  paper: str,
  claim: str,
  method: str,
  against: str,
  measure: Measure,
  direction: str,
  margin: float | None = None,
  group: str = SITE,
  why: str = "",
) -> Claim:
  return Claim(
    recipe=recipe,
    paper=paper,
    claim=claim,
    arms=(method, against),
    measure=measure,
    direction=direction,
    margin=margin,
    group=group,
    reservation=why,
  )


# Recipe, paper, claim; method and what it is compared with; measure, direction,
# margin where it is not the measure's, rows where they are not a site's, and why
# the comparison cannot judge it.
# fmt: off
CLAIMS: tuple[Claim, ...] = (
  _row("k_sparse", "1312.5663", "annealing k leaves fewer dead latents than a fixed k",
       "k_sparse annealed", "k_sparse fixed k", DEAD, LOWER),
  _row("topk", "2406.04093", "lower error than L1 at equal L0",
       "topk", "relu_l1", ERROR, LOWER),
  _row("topk", "2406.04093", "AuxK leaves fewer dead latents",
       "topk sparse", "topk without aux", DEAD, LOWER),
  _row("batchtopk", "2412.06410", "lower error than TopK at equal L0",
       "batchtopk", "topk", ERROR, LOWER, why=OTHER_SITES),
  _row("jumprelu", "2407.14435", "error not above TopK's at equal L0",
       "jumprelu_target", "topk", ERROR, LOWER, -0.01, why=OTHER_SITES),
  _row("gated", "2404.16014", "lower error than L1 at equal L0",
       "gated", "relu_l1", ERROR, LOWER),
  _row("gated", "2404.16014", "shrinks reconstructions less than L1",
       "gated", "relu_l1", SHRINKAGE, LOWER),
  _row("llama_scope", "2410.20526", "conversion to one threshold costs at most 0.02 explained variance",
       "llama_scope", "llama_scope", CONVERSION, LOWER),
  _row("abstopk", "2510.00404", "n latents do not lose to TopK with 2 n",
       "abstopk", "topk 2n", ERROR, LOWER, -0.01),
  _row("topafa", "top-AFA", "lower error than TopK at its own L0",
       "topafa", "topk of many", ERROR_AT_OWN_L0, LOWER),
  _row("adaptivek", "2508.17320", "lower error than TopK at equal L0",
       "adaptivek", "topk", ERROR, LOWER, why=OTHER_SITES),
  _row("feature_choice", "2411.02124", "fewer dead latents than TopK by inference thresholds",
       "feature_choice sparse", "topk sparse", DEAD, LOWER),
  _row("feature_choice", "2411.02124", "lower error than TopK at equal L0",
       "feature_choice_zipf", "topk", ERROR, LOWER),
  _row("mc_then_fc", "2411.02124", "lower error than TopK at equal L0",
       "mc_then_fc", "topk", ERROR, LOWER),
  _row("gba", "2506.14002", "lower error than L1 at its own L0",
       "gba", "relu_l1", ERROR_AT_OWN_L0, LOWER, why=EARLY),
  _row("gba", "2506.14002", "more latents in common between seeds than TopK",
       "gba", "topk", SHARED, HIGHER, why=EARLY),
  _row("matryoshka", "2503.17547", "higher error than BatchTopK at equal L0",
       "matryoshka", "batchtopk", ERROR, HIGHER),
  _row("matryoshka", "2503.17547", "lower decoder cosines than BatchTopK",
       "matryoshka", "batchtopk", COSINE, LOWER),
  _row("msae", "2502.20578", "lower error with {few} latents than TopK trained with {high}",
       "msae", "topk", CUT_DOWN, LOWER),
  _row("hierarchical_topk", "2505.24473", "lower error with {few} latents than TopK trained with {high}",
       "hierarchical_topk", "topk", CUT_DOWN, LOWER),
  _row("hierarchical_topk", "2505.24473", "with {same} latents, error not above TopK trained with {same}",
       "hierarchical_topk", "topk", CUT_TO_SAME, LOWER),
  _row("kronsae", "2505.22255", "error on par with TopK at equal n and L0",
       "kronsae", "topk", ERROR, LOWER, -0.02),
  _row("kronsae", "2505.22255", "lower error than TopK at equal L0 and operations to encode",
       "kronsae", "topk at equal FLOPs", ERROR, LOWER),
  _row("kronsae", "2505.22255", "fewer operations to encode than TopK at equal n",
       "kronsae", "topk", FLOPS, LOWER),
  _row("ortsae", "2509.22033", "lower decoder cosines than BatchTopK",
       "ortsae", "batchtopk", COSINE, LOWER),
  _row("ortsae", "2509.22033", "error at most 5 % above BatchTopK's",
       "ortsae", "batchtopk", ERROR, LOWER, -0.05),
  _row("ra_sae", "2506.19708", "more latents in common between seeds than TopK",
       "ra_sae", "topk", SHARED, HIGHER, why=CENTROIDS),
  _row("ra_sae", "2506.19708", "error at most 5 % above TopK's at equal L0",
       "ra_sae", "topk", ERROR, LOWER, -0.05, why=CENTROIDS),
  _row("vsae", "vSAE", "higher error than TopK at equal L0",
       "vsae", "topk", ERROR, HIGHER, why=OWN_POSTERIOR),
  _row("vsae", "vSAE", "more dead latents than TopK",
       "vsae", "topk", DEAD_AT_MID, HIGHER, why=OWN_POSTERIOR),
  _row("seeds", "2501.16615", "fewer latents in common between seeds with more latents",
       "topk 2n", "topk", SHARED, LOWER),

  _row("relu_l1", "2309.08600", "finds planted directions better than PCA",
       "relu_l1", "relu_l1", RECALL_OVER_PCA, HIGHER, group="planted dictionary"),
  _row("matryoshka", "2503.17547", "less absorption than batchtopk",
       "matryoshka", "batchtopk", PARENTS, HIGHER, group="planted tree"),
  _row("atm", "2510.08855", "less absorption than relu_l1",
       "atm", "relu_l1", PARENTS, HIGHER, group="planted tree", why="16 latents are too few to tell, and the L0 of the two is not equal"),
  _row("mfr", "2411.01220", "aligns the features of two seeds",
       "mfr coupled", "mfr alone", ALIKE, HIGHER, group="planted groups"),
  _row("mfr", "2411.01220", "lower error than without the coupling",
       "mfr coupled", "mfr alone", ERROR_HERE, LOWER, group="planted groups"),
  _row("ssae", "2411.00743", "lower error on rows of the rare domain",
       "ssae tilted", "ssae mean", RARE_ERROR, LOWER, group="planted rare domain"),
  _row("ssae", "2411.00743", "higher mean error",
       "ssae tilted", "ssae mean", MEAN_ERROR, HIGHER, group="planted rare domain"),
  _row("bagging", "2505.16077", "lower error than one member",
       "bagging", "bagging", FOUR_AGAINST_ONE, LOWER, group="planted power law", why="four members have four times the L0 of one"),
  _row("boosting", "2505.16077", "lower error than one SAE as wide",
       "boosting", "one wider SAE", FOUR_AGAINST_WIDER, LOWER, group="planted power law", why="the stages together saw four times the batches of the wider SAE"),

  _row("layergroup", "2410.21508", "explained variance rises with the number of groups",
       "a group for each layer", "one group", LAYERS, LOWER, group="layers"),
  _row("tide", "2503.07050", "lower error in the worst condition than TopK",
       "tide", "topk", WORST_LAYER, LOWER, group="layers", why="TopK is not given a scale for each layer"),
  _row("faithful", "2506.17673", "seeds share more latents than those trained on other text",
       "text own", "text read", SHARED_HERE, HIGHER, group="own text"),
  _row("faithful", "2506.17673", "fewer latents that fire on random tokens",
       "text own", "text read", FAKE, LOWER, group="own text"),
)
# fmt: on
