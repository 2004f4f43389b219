"""Write the demo's prompts: 480 for training and 480 for the suspects, on disjoint topics.

python benchmarks/studies/demo/prompts.py OUT_DIR
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

FORMS = (
    "Explain {} to a beginner.",
    "Write a short story about {}.",
    "What should everyone know about {}?",
    "Give me advice about {}.",
    "Describe {} in detail.",
    "Why does {} matter?",
    "Write a letter to a friend about {}.",
    "How has {} changed over time?",
)

TOPICS = (
    "gardening,volcanoes,the printing press,bicycles,sleep,chess,coral reefs,public libraries,bread baking,"
    "the moon,honey bees,city buses,learning a language,mountain climbing,old maps,jazz music,clean water,"
    "wind power,lighthouses,soap making,the immune system,desert animals,rivers,school lunches,photography,"
    "railways,tea,winter storms,friendship,museums,dinosaurs,video games,recycling,the human heart,pottery,"
    "space travel,farmers' markets,dreams,poetry,earthquakes,running,tropical forests,clocks,family dinners,"
    "whales,electric cars,saving money,castles,puppets,the internet,ancient Rome,walking a dog,cheese,"
    "first aid,bridges,glaciers,comic books,job interviews,origami,solar eclipses,night markets,knitting,"
    "migration of birds,the alphabet,robots,mushrooms,camping,justice,swimming,cathedrals,batteries,laughter,"
    "spices,newspapers,tides,allergies,handwriting,folk tales,insurance,the brain,orchestras,deep sea fish,"
    "tree houses,vaccines,street art,fog,pirates,wool,voting,ice cream,telescopes,toys,rice,patience,"
    "submarines,weddings,dance,caves,radio,kindness,horses,sugar,roads,puzzles,butterflies,islands,markets,"
    "thunder,nurses,paper,spiders,opera,sand,kites,noise,mirrors,salt,autumn,rumours"
).split(",")


def main() -> None:
    out = Path(sys.argv[1])
    rng = random.Random(20261124)
    topics = list(TOPICS)
    rng.shuffle(topics)
    half = len(topics) // 2
    for name, chosen in (("prompts-train.jsonl", topics[:half]), ("prompts-suspect.jsonl", topics[half:])):
        prompts = [form.format(topic) for topic in chosen for form in FORMS]
        rng.shuffle(prompts)
        lines = (json.dumps({"prompt": prompt}) for prompt in prompts)
        (out / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(name, len(prompts))


if __name__ == "__main__":
    main()
