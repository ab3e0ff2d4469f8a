"""Words of some meanings, for subsets of latents by their top tokens.

Short lists of our own; a study of other meanings gives its own words to
`universality.subspace`.
"""

KEYWORDS = {
  "time": (
    "time day days night week weeks month months year years hour hours minute "
    "minutes second seconds decade century today tomorrow yesterday morning noon "
    "afternoon evening midnight past present future early late soon later before "
    "after moment era age forever"
  ),
  "calendar": (
    "january february march april may june july august september october november "
    "december monday tuesday wednesday thursday friday saturday sunday spring "
    "summer autumn winter weekend holiday easter christmas"
  ),
  "months": (
    "january february march april may june july august september october november "
    "december jan feb mar apr jun jul aug sep sept oct nov dec"
  ),
  "people": (
    "man men woman women boy girl boys girls child children people person mother "
    "father mom dad parent parents brother sister son daughter wife husband uncle "
    "aunt friend friends teacher doctor nurse lawyer king queen prince president "
    "minister captain soldier farmer worker boss artist author actor player"
  ),
  "nature": (
    "tree trees forest flower flowers grass leaf leaves river rivers lake sea ocean "
    "mountain mountains hill valley desert island beach sky sun moon star stars "
    "rain snow wind storm cloud clouds stone rock soil earth water fire"
  ),
  "emotions": (
    "love hate joy happy happiness sad sadness anger angry fear afraid scared hope "
    "pride proud shame guilt jealous envy surprise surprised disgust lonely calm "
    "worry worried excited bored grief upset glad"
  ),
  "countries": (
    "america usa england britain scotland ireland wales france germany italy spain "
    "portugal greece turkey russia ukraine poland sweden norway denmark finland "
    "china japan korea india pakistan iran iraq israel egypt nigeria kenya brazil "
    "argentina chile mexico canada australia"
  ),
  "biology": (
    "cell cells gene genes dna rna protein proteins enzyme blood brain heart lung "
    "liver kidney muscle bone skin nerve tissue virus bacteria disease cancer plant "
    "plants animal animals species organism bird birds fish insect mammal evolution"
  ),
}
KEYWORDS = {name: frozenset(words.split()) for name, words in KEYWORDS.items()}
