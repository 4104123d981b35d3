"""Map free-text medication names to active ingredients.

The list is fixed, so no vocabulary is fitted on participants. It covers ingredients that are common in this age group,
with their brand names. A name matches if one of its words is listed (`Lipitor 20 mg`, `ATORVASTATIN CALCIUM`).
"""

import polars as pl

# Cholinesterase inhibitors and memantine are prescribed for dementia and reveal the label.
DEMENTIA_DRUGS: dict[str, tuple[str, ...]] = {
    "donepezil": ("donepezil", "aricept"),
    "rivastigmine": ("rivastigmine", "exelon"),
    "galantamine": ("galantamine", "razadyne", "reminyl"),
    "memantine": ("memantine", "namenda", "namzaric"),
}
INGREDIENTS: dict[str, tuple[str, ...]] = {
    "aspirin": ("aspirin", "asa", "ecotrin", "bayer"),
    "multivitamin": ("multivitamin", "multivitamins", "multi", "centrum", "mvi"),
    "vitamin_d": ("d3", "cholecalciferol", "ergocalciferol"),
    "vitamin_e": ("tocopherol", "vite"),
    "vitamin_b12": ("b12", "b-12", "cyanocobalamin"),
    "folic_acid": ("folic", "folate"),
    "ascorbic_acid": ("ascorbic",),
    "calcium": ("calcium", "caltrate", "citracal", "oscal"),
    "fish_oil": ("fish", "omega", "omega-3", "lovaza"),
    "glucosamine": ("glucosamine", "chondroitin"),
    "coenzyme_q10": ("coq10", "coenzyme", "ubiquinone"),
    "ginkgo": ("ginkgo", "gingko", "biloba"),
    "magnesium": ("magnesium",),
    "potassium": ("potassium", "klor-con"),
    "iron": ("iron", "ferrous"),
    "atorvastatin": ("atorvastatin", "lipitor"),
    "simvastatin": ("simvastatin", "zocor", "vytorin"),
    "rosuvastatin": ("rosuvastatin", "crestor"),
    "pravastatin": ("pravastatin", "pravachol"),
    "lovastatin": ("lovastatin", "mevacor"),
    "ezetimibe": ("ezetimibe", "zetia", "vytorin"),
    "niacin": ("niacin", "niaspan"),
    "lisinopril": ("lisinopril", "zestril", "prinivil", "zestoretic"),
    "losartan": ("losartan", "cozaar", "hyzaar"),
    "valsartan": ("valsartan", "diovan"),
    "amlodipine": ("amlodipine", "norvasc", "lotrel"),
    "metoprolol": ("metoprolol", "toprol", "toprol-xl", "lopressor"),
    "atenolol": ("atenolol", "tenormin"),
    "carvedilol": ("carvedilol", "coreg"),
    "hydrochlorothiazide": ("hydrochlorothiazide", "hctz", "zestoretic", "hyzaar"),
    "furosemide": ("furosemide", "lasix"),
    "clopidogrel": ("clopidogrel", "plavix"),
    "warfarin": ("warfarin", "coumadin"),
    "metformin": ("metformin", "glucophage"),
    "insulin": ("insulin", "lantus", "humalog", "novolog"),
    "levothyroxine": ("levothyroxine", "synthroid", "levoxyl", "l-thyroxine"),
    "omeprazole": ("omeprazole", "prilosec"),
    "esomeprazole": ("esomeprazole", "nexium"),
    "pantoprazole": ("pantoprazole", "protonix"),
    "ranitidine": ("ranitidine", "zantac"),
    "acetaminophen": ("acetaminophen", "tylenol", "paracetamol"),
    "ibuprofen": ("ibuprofen", "advil", "motrin"),
    "naproxen": ("naproxen", "aleve"),
    "celecoxib": ("celecoxib", "celebrex"),
    "sertraline": ("sertraline", "zoloft"),
    "citalopram": ("citalopram", "celexa", "escitalopram", "lexapro"),
    "fluoxetine": ("fluoxetine", "prozac"),
    "bupropion": ("bupropion", "wellbutrin"),
    "trazodone": ("trazodone", "desyrel"),
    "alendronate": ("alendronate", "fosamax"),
    "tamsulosin": ("tamsulosin", "flomax"),
    "finasteride": ("finasteride", "proscar"),
}
# Vitamins named by a single letter need a pattern instead of a word list.
PHRASES = {
    "vitamin_d": r"vit(?:amin)?\.? ?d\b",
    "vitamin_e": r"vit(?:amin)?\.? ?e\b",
    "ascorbic_acid": r"vit(?:amin)?\.? ?c\b",
}
NO_MEDICATION = ("none", "no medication", "no medications", "n/a")


def words(column: str) -> pl.Expr:
    """Split a medication name into lower-case words."""
    return pl.col(column).str.to_lowercase().str.extract_all(r"[a-z0-9][a-z0-9-]*")


def names_any(column: str, ingredient: str) -> pl.Expr:
    """Whether a medication name contains an ingredient or one of its brand names."""
    listed = {**INGREDIENTS, **DEMENTIA_DRUGS}[ingredient]
    found = words(column).list.eval(pl.element().is_in(listed)).list.any()
    if ingredient in PHRASES:
        found = found | pl.col(column).str.to_lowercase().str.contains(PHRASES[ingredient])
    return found.fill_null(False)


def is_dementia_drug(column: str) -> pl.Expr:
    return pl.any_horizontal(names_any(column, i) for i in DEMENTIA_DRUGS)


def is_medication(column: str) -> pl.Expr:
    """Whether a record names a medication (participants without medication have a record `none`)."""
    return pl.col(column).is_not_null() & ~pl.col(column).str.to_lowercase().str.strip_chars(" .").is_in(NO_MEDICATION)
