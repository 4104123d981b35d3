"""Words of the simulated reviews: fillers, and a pair of sentiment word lists for each factor expressed in text."""

# ruff: noqa: SIM905  (word lists are easier to read as text)

# Judgements of the film as a whole express the factor shared with audio and vision.
SHARED_POSITIVE = (
    "good great excellent awesome wonderful amazing fantastic brilliant perfect beautiful enjoyable superb "
    "terrific delightful impressive outstanding lovely loved fun magnificent"
).split()
SHARED_NEGATIVE = (
    "bad terrible awful horrible boring dull poor worst dreadful lousy disappointing miserable ugly hated stupid "
    "pathetic weak mediocre unbearable disaster"
).split()
# Judgements of details and recommendations express the factor specific to text.
PRIVATE_POSITIVE = (
    "recommend clever funny touching charming thrilling believable inventive hilarious gripping heartfelt smart "
    "memorable original refreshing witty convincing moving polished worthwhile"
).split()
PRIVATE_NEGATIVE = (
    "waste annoying predictable confusing clumsy shallow slow pointless cheesy forgettable lazy ridiculous silly "
    "overlong messy wooden bland tedious unfunny regret"
).split()
FILLER = (
    "the and i it of to that was you like movie this in is but so they um a just have really with on for not there "
    "were what as all he she one be my at out about some because people know think when do from if character scene "
    "story actor director film plot ending screen cast friends theater minutes part time way say see go"
).split()
LISTS = (FILLER, SHARED_NEGATIVE, SHARED_POSITIVE, PRIVATE_NEGATIVE, PRIVATE_POSITIVE)
