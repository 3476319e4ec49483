"""Further feature maps: random features other than RanPAC's."""
