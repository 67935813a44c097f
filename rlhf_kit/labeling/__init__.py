"""People in the loop: what they are asked (`tasks`), what they say (`replies`), where it is kept (`store`, over
`database`), who is asked what next (`assignment`), and what comes of it (`exporting`, `figures`).

Nothing here needs torch.
"""
