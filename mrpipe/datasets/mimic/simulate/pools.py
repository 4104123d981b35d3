"""Items, codes with titles, and phrases of notes for simulated MIMIC-IV exports."""

Items = tuple[tuple[int, str, str, float, float, float, float, float, float], ...]
Codes = tuple[tuple[str, str, float, float], ...]
# itemid, label, unit, mean, sd, rounding step, loadings on the shared and the lab factor, relative frequency
LAB_ITEMS: Items = (
    (50912, "Creatinine", "mg/dL", 1.2, 0.3, 0.1, 0.2, 0.3, 6),
    (51006, "Urea Nitrogen", "mg/dL", 24, 7, 1, 4, 5, 6),
    (50983, "Sodium", "mEq/L", 138, 3.5, 1, -0.7, -0.7, 6),
    (50971, "Potassium", "mEq/L", 4.2, 0.4, 0.1, 0.05, 0.1, 6),
    (50902, "Chloride", "mEq/L", 102, 4, 1, 0, -0.4, 5),
    (50882, "Bicarbonate", "mEq/L", 25, 3, 1, -1, -1, 5),
    (50931, "Glucose", "mg/dL", 128, 30, 1, 3, 5, 6),
    (51222, "Hemoglobin", "g/dL", 10.8, 1.2, 0.1, -0.5, -0.5, 5),
    (51221, "Hematocrit", "%", 32.5, 3.5, 0.1, -1.4, -1.4, 5),
    (51265, "Platelet Count", "K/uL", 215, 60, 1, -12, -20, 5),
    (51301, "White Blood Cells", "K/uL", 9.6, 3, 0.1, 1, 0.8, 5),
    (50813, "Lactate", "mmol/L", 1.8, 0.6, 0.1, 0.4, 0.4, 3),
    (50885, "Bilirubin, Total", "mg/dL", 0.9, 0.4, 0.1, 0.15, 0.2, 3),
    (50862, "Albumin", "g/dL", 3.3, 0.4, 0.1, -0.25, -0.25, 2),
    (51237, "INR(PT)", "", 1.4, 0.3, 0.1, 0.1, 0.15, 3),
    (50820, "pH", "units", 7.38, 0.05, 0.01, -0.01, -0.01, 2),
    (50893, "Calcium, Total", "mg/dL", 8.6, 0.5, 0.1, -0.1, -0.1, 3),
    (50960, "Magnesium", "mg/dL", 2.0, 0.25, 0.1, 0, 0, 3),
    (50970, "Phosphate", "mg/dL", 3.6, 0.8, 0.1, 0.1, 0.2, 3),
    (50861, "Alanine Aminotransferase (ALT)", "IU/L", 40, 15, 1, 3, 3, 2),
)
CHART_ITEMS: Items = (
    (220045, "Heart Rate", "bpm", 86, 10, 1, 4, 4, 9),
    (220210, "Respiratory Rate", "insp/min", 19, 3.5, 1, 1, 1, 9),
    (220277, "O2 saturation pulseoxymetry", "%", 96, 1.6, 1, -0.5, -0.5, 9),
    (220179, "Non Invasive Blood Pressure systolic", "mmHg", 122, 14, 1, -4, -4, 7),
    (220180, "Non Invasive Blood Pressure diastolic", "mmHg", 64, 10, 1, -2, -2, 7),
    (220181, "Non Invasive Blood Pressure mean", "mmHg", 78, 10, 1, -2.5, -2.5, 7),
    (223761, "Temperature Fahrenheit", "°F", 98.4, 0.8, 0.1, 0.1, 0.1, 4),
    (223762, "Temperature Celsius", "°C", 36.9, 0.45, 0.1, 0.05, 0.05, 1),
    (220739, "GCS - Eye Opening", "", 3.4, 0.4, 1, -0.2, -0.1, 3),
    (223901, "GCS - Motor Response", "", 5.6, 0.4, 1, -0.2, -0.1, 3),
    (223835, "Inspired O2 Fraction", "", 45, 10, 1, 3, 2, 3),
    (220074, "Central Venous Pressure", "mmHg", 10, 4, 1, 0.5, 0.5, 2),
    (226512, "Admission Weight (Kg)", "kg", 82, 3, 0.1, 0, 0, 0.3),
    (226531, "Admission Weight (lbs.)", "lb", 180, 6, 1, 0, 0, 0.3),
    (226730, "Height (cm)", "cm", 169, 1, 1, 0, 0, 0.3),
    (226707, "Height", "Inch", 66, 0.5, 1, 0, 0, 0.3),
)
CHART_TEXT = (
    (220048, "Heart Rhythm", ("SR (Sinus Rhythm)", "AF (Atrial Fibrillation)", "ST (Sinus Tachycardia)", "___")),
)
LAB_TEXT = (
    (51463, "Bacteria", ("NEG", "FEW", "MOD", "___", "HOLD")),
    (51506, "Urine Appearance", ("Clear", "Hazy", "___")),
)

# icd_code, long_title, log odds at factor 0, loading on the factor
DX9 = (
    ("0389", "Unspecified septicemia", -2.0, 0.8),
    ("4019", "Unspecified essential hypertension", -0.2, -0.4),
    ("25000", "Diabetes mellitus without mention of complication, type II", -1.0, 0.0),
    ("42731", "Atrial fibrillation", -0.9, 0.3),
    ("5849", "Acute kidney failure, unspecified", -1.1, 0.7),
    ("51881", "Acute respiratory failure", -1.3, 0.9),
    ("486", "Pneumonia, organism unspecified", -1.6, 0.4),
    ("99592", "Severe sepsis", -2.0, 0.9),
    ("V4582", "Percutaneous transluminal coronary angioplasty status", -2.2, -0.3),
    ("V5861", "Long-term (current) use of anticoagulants", -1.9, 0.1),
    ("E8785", "Amputation of limb(s) as the cause of abnormal reaction of patient", -3.5, 0.0),
    ("41401", "Coronary atherosclerosis of native coronary artery", -1.0, -0.2),
    ("2724", "Other and unspecified hyperlipidemia", -0.7, -0.5),
    ("2859", "Anemia, unspecified", -1.4, 0.2),
    ("4280", "Congestive heart failure, unspecified", -1.1, 0.6),
    ("5990", "Urinary tract infection, site not specified", -1.5, 0.2),
    ("53081", "Esophageal reflux", -1.2, -0.4),
    ("496", "Chronic airway obstruction, not elsewhere classified", -1.8, 0.4),
    ("2762", "Acidosis", -1.8, 0.6),
    ("2761", "Hyposmolality and/or hyponatremia", -1.8, 0.4),
    ("1977", "Malignant neoplasm of liver, secondary", -3.0, 1.2),
    ("5715", "Cirrhosis of liver without mention of alcohol", -2.6, 0.8),
    ("07070", "Unspecified viral hepatitis C without hepatic coma", -2.8, 0.1),
    ("0414", "Shiga toxin-producing Escherichia coli infection", -2.6, 0.2),
    ("3051", "Tobacco use disorder", -1.6, -0.1),
)
PR9 = (
    ("3893", "Venous catheterization, not elsewhere classified", -0.6, 0.5),
    ("9671", "Continuous invasive mechanical ventilation, less than 96 hours", -1.2, 0.7),
    ("966", "Enteral infusion of concentrated nutritional substances", -1.6, 0.5),
    ("0331", "Spinal tap", -2.6, 0.1),
    ("3961", "Extracorporeal circulation auxiliary to open heart surgery", -2.0, -0.6),
    ("9604", "Insertion of endotracheal tube", -1.4, 0.6),
    ("8856", "Coronary arteriography using two catheters", -1.9, -0.4),
    ("3995", "Hemodialysis", -2.2, 0.6),
)
DX10 = (
    ("A419", "Sepsis, unspecified organism", -1.8, 0.8),
    ("I10", "Essential (primary) hypertension", -0.3, -0.4),
    ("E119", "Type 2 diabetes mellitus without complications", -1.0, 0.0),
    ("N179", "Acute kidney failure, unspecified", -1.1, 0.7),
    ("J9601", "Acute respiratory failure with hypoxia", -1.3, 0.8),
    ("I4891", "Unspecified atrial fibrillation", -1.0, 0.2),
    ("Z87891", "Personal history of nicotine dependence", -0.9, -0.1),
    ("E785", "Hyperlipidemia, unspecified", -0.8, -0.4),
)
PR10 = (
    ("02HV33Z", "Insertion of Infusion Device into Superior Vena Cava, Percutaneous Approach", -0.8, 0.5),
    ("5A1945Z", "Respiratory Ventilation, 24-96 Consecutive Hours", -1.4, 0.7),
    ("0BH17EZ", "Insertion of Endotracheal Airway into Trachea", -1.5, 0.6),
)

# Pairs of an unfavourable and a favourable phrase.
PHRASES = (
    ("ill appearing, cachectic and lethargic", "well appearing, in no acute distress"),
    ("metastatic disease was found on imaging", "imaging was without acute findings"),
    ("required vasopressors and intubation", "remained hemodynamically stable"),
    ("renal function worsened and dialysis was started", "renal function returned to baseline"),
    ("course was complicated by septic shock", "course was uncomplicated"),
    ("poor oral intake, albumin remained low", "tolerating a regular diet"),
    ("bed bound and dependent in all activities", "ambulating independently"),
    ("recurrent ascites, paracentesis was performed", "abdomen soft and non-tender"),
    ("oxygen requirement persisted", "weaned to room air"),
    ("confused and oriented to self only", "alert and oriented to person, place and time"),
)
_PLAIN = (
    "seen by physical therapy|home medications were continued|electrolytes were repleted|"
    "telemetry was discontinued|antibiotics were given for seven days|"
    "follow up with the primary care physician|chest x-ray was repeated|heparin subcutaneous for prophylaxis|"
    "diabetes managed with sliding scale insulin|blood pressure medications were adjusted"
)
PLAIN = tuple(_PLAIN.split("|"))
_COMPLAINTS = "Dyspnea|Chest pain|Altered mental status|Fever|Abdominal pain|Fall|Hypotension|Weakness"
COMPLAINTS = tuple(_COMPLAINTS.split("|"))
LOCATIONS = ("HOME", "HOME HEALTH CARE", "SKILLED NURSING FACILITY", "REHAB", "CHRONIC/LONG TERM ACUTE CARE", "HOSPICE")
_ADMISSION_TYPES = (
    "EW EMER.|URGENT|ELECTIVE|OBSERVATION ADMIT|EU OBSERVATION|SURGICAL SAME DAY ADMISSION|DIRECT EMER.|"
    "DIRECT OBSERVATION|AMBULATORY OBSERVATION"
)
ADMISSION_TYPES = tuple(_ADMISSION_TYPES.split("|"))
INSURANCE = ("Medicare", "Medicaid", "Other")
RACES = ("WHITE", "BLACK/AFRICAN AMERICAN", "HISPANIC/LATINO - PUERTO RICAN", "ASIAN - CHINESE", "UNKNOWN")
CAREUNITS = ("Medical Intensive Care Unit (MICU)", "Surgical Intensive Care Unit (SICU)", "Coronary Care Unit (CCU)")
