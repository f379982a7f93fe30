"""The page of a report; everything that it shows is inside the one file."""

from __future__ import annotations

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{{ page.title }}</title>
<style>
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
       max-width: 72rem; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; margin-bottom: 0.2rem; }
h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #ccc; }
h3 { font-size: 1rem; margin-bottom: 0.3rem; }
.verdict { background: #f2f6fa; border-left: 5px solid #0072b2; padding: 0.8rem 1.2rem; }
.warning { background: #fdf1e8; border-left: 5px solid #d55e00; padding: 0.8rem 1.2rem; }
.note { color: #555; font-size: 0.87rem; max-width: 60rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.87rem; }
th, td { text-align: left; padding: 0.3rem 0.8rem 0.3rem 0; border-bottom: 1px solid #e2e2e2;
         vertical-align: top; font-variant-numeric: tabular-nums; }
th { color: #444; font-weight: 600; }
td code { font-size: 0.75rem; word-break: break-all; display: block; min-width: 26rem; }
figure { margin: 1.2rem 0; }
img { max-width: 100%; height: auto; display: block; }
figcaption { color: #555; font-size: 0.87rem; max-width: 60rem; }
pre { background: #f6f6f6; padding: 0.7rem; overflow-x: auto; font-size: 0.78rem; }
details { margin: 0.6rem 0; }
summary { cursor: pointer; }
</style>
</head>
<body>
{%- macro grid(table) %}
{%- if table.rows %}
<div class="wide"><table>
<thead><tr>{% for name in table.header %}<th scope="col">{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{%- for row in table.rows %}
<tr>
{%- for text in row %}
{%- if table.header[loop.index0] == "command" %}<td><code>{{ text }}</code></td>
{%- else %}<td>{{ text }}</td>
{%- endif %}
{%- endfor %}</tr>
{%- endfor %}
</tbody></table></div>
{%- else %}
<p class="note">Nothing to show yet.</p>
{%- endif %}
{%- if table.note %}
<p class="note">{{ table.note }}</p>
{%- endif %}
{%- endmacro %}
{%- macro show(picture) %}
<figure>
<h3>{{ picture.title }}</h3>
<img src="{{ picture.address }}" alt="{{ picture.title }}">
<figcaption>{{ picture.caption }}</figcaption>
</figure>
{%- endmacro %}
<h1>{{ page.title }}</h1>
<p class="note">{{ page.summary }}</p>
<p class="note">{{ page.setting }}</p>
{%- for warning in page.warnings %}
<p class="warning"><strong>{{ warning }}</strong></p>
{%- endfor %}
<p class="verdict">{{ page.sentences | join(" ") }}</p>
{%- for table in page.tables[:1] %}
<h2>{{ table.title }}</h2>
{{- grid(table) }}
{%- endfor %}
{%- for picture in page.pictures if picture.name in ("label_efficiency", "structures") %}
{{- show(picture) }}
{%- endfor %}
{%- for table in page.tables[1:2] %}
<h2>{{ table.title }}</h2>
{{- grid(table) }}
{%- endfor %}
{%- set beside = ("paired_differences", "scatter", "learning_curves") %}
{%- for picture in page.pictures if picture.name in beside %}
{{- show(picture) }}
{%- endfor %}
{%- for table in page.tables[2:] %}
<h2>{{ table.title }}</h2>
{{- grid(table) }}
{%- if table.title == "Cost" %}
{%- for picture in page.pictures if picture.name in ("cost", "probe") %}
{{- show(picture) }}
{%- endfor %}
{%- endif %}
{%- endfor %}
<h2>Has pre-training seen the evaluated images?</h2>
{%- for title, findings in page.leaks %}
<h3>{{ title }}</h3>
<ul>
{%- for finding in findings %}
<li><strong>{{ finding.verdict }}</strong> (by {{ finding.by }}): {{ finding.text }}</li>
{%- endfor %}
</ul>
{%- else %}
<p class="note">No finished pre-training was evaluated.</p>
{%- endfor %}
{%- if page.overlays %}
<h2>Worst cases</h2>
<p class="warning">These pictures show images of patients. Leave them out with --no-images before
this file is passed on.</p>
{%- for picture in page.overlays %}
{{- show(picture) }}
{%- endfor %}
{%- endif %}
<h2>Runs that are not done</h2>
{%- if page.open_cells.rows %}
{{- grid(page.open_cells) }}
{%- else %}
<p>All runs of the study are done.</p>
{%- endif %}
{%- if page.waiting %}
<p>Left out, because they wait:</p>
<ul>
{%- for method, reason in page.waiting.items() %}
<li>{{ method }}: {{ reason }}</li>
{%- endfor %}
</ul>
{%- endif %}
<h2>Where the numbers come from</h2>
<p class="note">Splits (SHA-256 of splits_final.json): {{ page.splits }}.
Report written {{ page.date }} with nnssl {{ page.version }}.</p>
<details><summary>Every run: seeds, versions, machine, command (in the study's folder)</summary>
{{- grid(page.all_cells) }}
</details>
<details><summary>The study</summary><pre>{{ page.study }}</pre></details>
{%- for title, text in page.configurations %}
<details><summary>Settings: {{ title }}</summary><pre>{{ text }}</pre></details>
{%- endfor %}
</body>
</html>
"""
