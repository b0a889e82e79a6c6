"""The colours of pictures and report: anchors of the colour maps, evenly spaced.

Every sequential map runs through one direction of luminance, so it survives a grey printer and colour-blind
eyes. What deserves attention stands out from the page: a miss in a needle heatmap, a retrieval head in a head heatmap.
"""

# Even steps of OKLCH lightness: deep indigo (0) to pale sand (1).
SCORES = ("#20114b", "#2c2469", "#313d87", "#2e5ba2", "#1d7fb0", "#38a3b3", "#6cc3ba", "#aae0bf", "#f4f2d0")

# Paper (0) to plum: most heads score near 0, and only the few that do not should take ink.
HEADS = ("#f9f6f2", "#f8e4c5", "#f7c68c", "#f2a059", "#e67435", "#ca4834", "#9c293d", "#68143d", "#360a2f")

# The same heads on a dark page, where light is the ink.
HEADS_ON_DARK = ("#1f1d24", "#381230", "#68143d", "#9c293d", "#ca4834", "#e67435", "#f2a059", "#f7c68c", "#fbeed8")

# Orange (lower) to blue (higher): the pair that all common kinds of colour blindness tell apart. Both ends
# are equally dark, so a grey printer needs signs beside them.
DIFFERENCES = ("#7e3307", "#b46832", "#e29858", "#f9c898", "#f6f6f6", "#b2d8f4", "#74b3de", "#3f83bb", "#1e4b8d")

DIFFERENCES_ON_DARK = (
    "#fbd9b8",
    "#f3ab68",
    "#cb7a38",
    "#7d4416",
    "#26282e",
    "#1f4a7c",
    "#3f83bb",
    "#7fbbe4",
    "#c6e3f8",
)
