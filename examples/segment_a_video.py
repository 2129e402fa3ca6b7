# %% [markdown]
# # Which pixels make this sound?
# A video in; which pixels of it sound, and when, out. Install the package first, in a clone: `pip install .` (Colab:
# `!git clone` it, `%cd` into it, `%pip install .`). Everything below runs offline, on a CPU.
#
# The bundled weights know seven animals (bird, cat, cow, dog, hen, lion, sheep) and nothing else, for research that is
# not commercial.

# %%
import combo_hf
from combo_hf.results.folder import predict_to_folder


VIDEO = combo_hf.ASSETS / "demo_real.mp4"  # or a file of your own
MODEL = None  # the bundled weights; or a folder or Hub id
FPS = 1  # how often a second the network looks

# %% [markdown]
# ## The pipeline
# One entry for every moment that was looked at, with the segments in it.

# %%
pipe = combo_hf.load_pipeline(MODEL)
result = pipe(str(VIDEO), fps=FPS, return_maps=True)
for frame in result["frames"]:
    print(f"{frame['timestamp']:.2f} s", [(part["label"], round(part["score"], 2)) for part in frame["segments"]])

# %% [markdown]
# A segment's `mask` is a PIL image, `label_map` an array of class numbers at the size of the video.

# %%
frame = max(result["frames"], key=lambda frame: len(frame["segments"]))
combo_hf.overlay(frame["image"], frame["label_map"])

# %% [markdown]
# ## All of it in one picture
# Frames, heat maps and masks over the sound.

# %%
combo_hf.contact_sheet(result)

# %% [markdown]
# ## Files
# The video with coloured masks and its sound, masks as PNG, a JSON file, subtitles: what `combo-hf predict` writes.

# %%
prediction = predict_to_folder(pipe, str(VIDEO), "segmented", fps=FPS, masks=True, summary=True, timelines=("srt",))
print(prediction.summary)
for kind, path in prediction.files.items():
    print(f"{kind:8} {path}")
