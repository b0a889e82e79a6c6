"""A free set of needles whose question shares no word with them: what links the two is knowledge of the world.

Each is its name, the needle, the question, and a distractor that says the question's word and names nobody. Written for
this project after the idea of NoLiMa (arXiv 2502.05167), of whose data nothing is here. `{CHAR}` is the character.
"""

from __future__ import annotations

from typing import Final

CHARACTERS: Final = (
    *("Bruno", "Conrad", "Lina", "Magnus", "Marek", "Nora"),
    *("Petra", "Selma", "Silas", "Tilda", "Vera", "Viktor"),
)
"""Of every language. None says where somebody is from; each begins with a consonant, as the French sentences need."""

OWN: Final[dict[str, tuple[tuple[str, str, str, str], ...]]] = {
    "en": (
        (
            "barcelona",
            "Every morning {CHAR} opened the shutters and looked straight up at Sagrada Família.",
            "Which character lives in Barcelona?",
            "A postcard of Barcelona lay on the counter of the shop.",
        ),
        (
            "dairy",
            "Doctors had told {CHAR} long ago to keep away from milk, butter and cheese.",
            "Which character should avoid dairy?",
            "The price of dairy had doubled that winter.",
        ),
        (
            "vegan",
            "{CHAR} never touches meat, fish, eggs, milk or honey.",
            "Which character is vegan?",
            "A vegan restaurant had opened across the street.",
        ),
        (
            "blind",
            "Since the accident {CHAR} reads with fingertips, following raised dots across thick paper.",
            "Which character is blind?",
            "The street ended in a blind alley behind the mill.",
        ),
        (
            "violin",
            "{CHAR} tuned all four strings, tucked the instrument under the chin and raised the bow.",
            "Which character plays violin?",
            "An old violin without a price hung in the window.",
        ),
        (
            "tanzania",
            "{CHAR} reached the summit of Kilimanjaro just before sunrise.",
            "Which character has been to Tanzania?",
            "There was an article about Tanzania on the third page.",
        ),
        (
            "germany",
            "As a child {CHAR} walked past the Brandenburg Gate on the way home each afternoon.",
            "Which character grew up in Germany?",
            "The lamp came from a factory somewhere in Germany.",
        ),
        (
            "fishing",
            "{CHAR} mends torn nets all evening and puts out before dawn, hoping for herring.",
            "Which character earns a living by fishing?",
            "A sign on the canal said that fishing was forbidden.",
        ),
        (
            "paris",
            "On the night of 14 July {CHAR} watched fireworks burst above the Eiffel Tower.",
            "Which character has been to Paris?",
            "The parcel from Paris had been lost on its way.",
        ),
    ),
    "de": (
        (
            "rom",
            "{CHAR} saß lange vor dem Kolosseum und zeichnete die Bögen.",
            "Wer war bereits in Rom?",
            "Über Rom stand gestern ein langer Artikel auf der ersten Seite.",
        ),
        (
            "gluten",
            "Beim Bäcker fragt {CHAR} stets nach Brot ganz ohne Weizen, Roggen und Gerste.",
            "Wer verträgt kein Gluten?",
            "Das Wort Gluten stammt aus dem Lateinischen.",
        ),
        (
            "wien",
            "{CHAR} öffnet jeden Abend das Fenster und blickt auf den Stephansdom.",
            "Wer wohnt in Wien?",
            "Der Zug nach Wien hatte an diesem Tag Verspätung.",
        ),
        (
            "diabetes",
            "Vor jeder Mahlzeit misst {CHAR} den Blutzucker und spritzt sich Insulin.",
            "Wer leidet an Diabetes?",
            "Im Regal stand ein dickes Buch über Diabetes.",
        ),
        (
            "treppen",
            "Seit dem Unfall kommt {CHAR} nur noch mit dem Rollstuhl voran.",
            "Wer kann keine Treppen steigen?",
            "Die Treppen des alten Turms waren aus Eichenholz.",
        ),
        (
            "vegan",
            "{CHAR} rührt weder Fleisch noch Fisch, Milch, Eier oder Honig an.",
            "Wer lebt vegan?",
            "Am Markt wurde ein vegan geführtes Wirtshaus eröffnet.",
        ),
        (
            "bern",
            "{CHAR} ließ sich vor dem Bundeshaus fotografieren und ging danach zum Ufer der Aare hinunter.",
            "Wer hat Bern besucht?",
            "Ein Brief aus Bern lag ungeöffnet auf dem Tisch.",
        ),
        (
            "architekt",
            "Mit Zirkel und Lineal zeichnet {CHAR} Grundrisse, bevor die Maurer kommen.",
            "Wer arbeitet als Architekt?",
            "Ein Architekt war auf dem Schild am Tor nicht genannt.",
        ),
        (
            "dresden",
            "{CHAR} hört die Glocken der Frauenkirche durch das offene Küchenfenster und sieht dahinter die Elbe.",
            "Wer wohnt in Dresden?",
            "Die Tassen stammten aus einer Fabrik bei Dresden.",
        ),
    ),
    "fr": (
        (
            "londres",
            "Chaque matin, {CHAR} sort de chez soi et traverse Trafalgar Square.",
            "Qui habite à Londres ?",
            "Un article sur Londres occupait toute la première page.",
        ),
        (
            "allergique",
            "{CHAR} refuse tout plat contenant des arachides, car la moindre miette conduirait aux urgences.",
            "Qui est allergique ?",
            "Le mot allergique figurait en gras dans le dictionnaire.",
        ),
        (
            "japon",
            "{CHAR} a vu le soleil se lever depuis le sommet du mont Fuji.",
            "Qui est déjà allé au Japon ?",
            "Une carte du Japon pendait derrière le comptoir.",
        ),
        (
            "rome",
            "Depuis la fenêtre de sa chambre, {CHAR} aperçoit chaque soir le Colisée.",
            "Qui habite à Rome ?",
            "Le train de Rome avait deux heures de retard.",
        ),
        (
            "piano",
            "Les doigts de {CHAR} courent sur quatre-vingt-huit touches noires et blanches.",
            "Qui joue du piano ?",
            "Un vieux piano prenait la poussière au fond de la salle.",
        ),
        (
            "vegetalien",
            "{CHAR} ne mange ni viande, ni poisson, ni œufs, ni miel, ni fromage.",
            "Qui suit un régime végétalien ?",
            "Le nouveau restaurant végétalien restait presque toujours vide.",
        ),
        (
            "avocat",
            "Devant les juges, {CHAR} défend les accusés, une robe noire sur les épaules.",
            "Qui travaille comme avocat ?",
            "Le bureau qu'occupait un avocat était fermé depuis des années.",
        ),
        (
            "aveugle",
            "{CHAR} lit du bout des doigts, en suivant des points en relief.",
            "Qui est aveugle ?",
            "La rue finissait sur un mur aveugle couvert de lierre.",
        ),
        (
            "athenes",
            "{CHAR} grimpa jusqu'au Parthénon sous un soleil brûlant.",
            "Qui a visité Athènes ?",
            "La lettre d'Athènes n'était jamais arrivée.",
        ),
    ),
}
"""By language."""
