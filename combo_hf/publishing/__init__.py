"""Publishing a checkpoint on the Hub: what goes, what its card says, and the upload (`combo-hf push`).

from combo_hf.publishing import plan_publication, publish

publication = plan_publication("runs/demo/best", "me/combo-demo", results=["scores/results.json"])
for file in publication.files:
    print(file.name, file.size, file.why)
print(publish(publication, private=True))
"""

from combo_hf.publishing.card import Origin, build_card, find_origin
from combo_hf.publishing.plan import Publication, PublishedFile, plan_publication
from combo_hf.publishing.upload import Published, check_access, publish, resolve_repo_id


__all__ = [
    "Origin",
    "Publication",
    "Published",
    "PublishedFile",
    "build_card",
    "check_access",
    "find_origin",
    "plan_publication",
    "publish",
    "resolve_repo_id",
]
