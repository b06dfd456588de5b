// What the page says, in the languages it knows. A region's locale picks the words and how numbers
// and prices are written; a locale without words of its own gets English ones, and product texts
// keep the locale they are written in.

const en = {
  title: "Product search", skip: "Skip to the products", query: "Search for products",
  placeholder: "What are you looking for?", placeholder_like: "Add words: “but in red”",
  help: "Suggestions appear as you type; choose one with the arrow keys. A photo may be dropped or pasted anywhere on this page.",
  clear: "Clear the search", photo: "Search with a photo", file: "Photo to search with", go: "Search",
  suggestions: "Suggestions", num_suggestions: { one: "{n} suggestion", other: "{n} suggestions" },
  kind_brand: "brand", kind_category: "category", kind_phrase: "",
  drop: "Drop the photo to search with it", your_photo: "Your photo",
  remove_photo: "Remove the photo", remove_product: "Remove the product",
  popular: "Popular right now", start_lead: "Search with words, with a photo, or with both.",
  results_for: "Results for “{query}”", results_photo: "Products like your photo",
  results_product: "Similar to {title}", with_words: "{what}, “{query}”", all: "All products",
  total: { one: "{n} product", other: "{n} products" },
  shown: { one: "{shown} of {n} product shown", other: "{shown} of {n} products shown" },
  show_found: { one: "Show {n} product", other: "Show {n} products" },
  loading: "Searching …", more: "Show more", none: "Nothing found",
  none_text: "Try fewer or other words, remove a filter, or search with a photo.",
  filters: "Filters", filters_n: "Filters ({n})", active: "Active filters", remove: "Remove filter {name}",
  clear_all: "Clear all", category: "Category", brand: "Brand", price: "Price", rating: "Rating",
  in_stock: "In stock", in_stock_only: "In stock only", show_all: "Show all {n}", show_fewer: "Show fewer",
  from: "From", to: "To", lowest: "Lowest price", highest: "Highest price", at_least: "{n} and more",
  any: "Any", from_price: "from {price}", to_price: "up to {price}",
  sort: "Sort", relevance: "Best match", price_asc: "Price, low to high", price_desc: "Price, high to low",
  rating_desc: "Rating", compare: "Compare", similar: "Similar products", similar_to: "Similar products to {title}",
  stars: "{n} of 5 stars", reviews: { one: "{n} review", other: "{n} reviews" },
  variants: { one: "{n} more variant", other: "{n} more variants" }, out_of_stock: "Out of stock",
  did_you_mean: "Did you mean {correction}?", because: "Because you looked at {title}",
  relaxed: "Nothing matches all filters. Showing results without: {names}.",
  fell_back: "Nothing found for this search. Here is what is popular.",
  expired: "The list changed while you were looking, so here it is from the start.",

  offline: "You are offline", offline_text: "The search comes back by itself when your connection does.",
  unreachable: "The search cannot be reached", unreachable_text: "It may be starting again. Trying again {when}.",
  busy: "Many people are searching just now", busy_text: "Trying again {when}.",
  starting: "The search is starting up", starting_text: "It is nearly there. Trying again {when}.",
  slow: "That took too long", slow_text: "Please try again; fewer words are often quicker.",
  denied: "This search asks for a token", denied_text: "Ask whoever runs it how to get in.",
  too_large: "That photo is too large", refused: "This search was not accepted", gone_release: "Not here any more",
  failed: "Something went wrong", failed_text: "Please try again.", again: "Try again", reference: "Reference: {id}",
  in_s: { one: "in {n} second", other: "in {n} seconds" }, bad_photo: "This file cannot be read as a photo. JPEG, PNG and WebP work.",
  release: "Release {n}", base_release: "Base alone", digest: "Encoder digest",
  close: "Close", description: "Description", attributes: "Details", also: "Also available as",
  why: "Why it is here", meaning: "Meaning", words: "Words", meaning_rank: "No. {rank} by meaning",
  words_rank: "No. {rank} by words", meaning_score: "similarity {score}", words_score: "BM25 {score}",
  no_meaning: "not found by meaning", no_words: "not found by its words", shared_words: "Shared words:",
  put_first: "Put first: it is just what was asked for, or a rule of this shop says so.", mix: "This search is decided {meaning} by meaning and {words} by words.",
  why_none: "This list gives no reasons.", not_now: "Nothing similar was found.",
  side_by_side: "Side by side", side_lead: "The same search, answered in two ways. Nothing you do here is recorded.",
  left: "Left", right: "Right", which_release: "Release", which_ranker: "Ranker",
  hybrid: "Mix", dense: "Meaning", lexical: "Words", current: "{release} (current)",
  overlap: "{n} of the first {of} are in both lists.", took: "{n} ms", up: "{n} up", down: "{n} down", same: "same place",
  only_here: "only here", rank: "No. {n}",
};

const de = {
  title: "Produktsuche", skip: "Zu den Produkten springen", query: "Nach Produkten suchen",
  placeholder: "Was suchen Sie?", placeholder_like: "Mit Worten ergänzen: „aber in Rot“",
  help: "Vorschläge erscheinen beim Tippen; wählen Sie mit den Pfeiltasten. Ein Foto kann überall auf dieser Seite abgelegt oder eingefügt werden.",
  clear: "Suche leeren", photo: "Mit einem Foto suchen", file: "Foto für die Suche", go: "Suchen",
  suggestions: "Vorschläge", num_suggestions: { one: "{n} Vorschlag", other: "{n} Vorschläge" },
  kind_brand: "Marke", kind_category: "Kategorie", kind_phrase: "",
  drop: "Foto ablegen, um damit zu suchen", your_photo: "Ihr Foto",
  remove_photo: "Foto entfernen", remove_product: "Produkt entfernen",
  popular: "Gerade beliebt", start_lead: "Suchen Sie mit Worten, mit einem Foto oder mit beidem.",
  results_for: "Ergebnisse für „{query}“", results_photo: "Produkte wie Ihr Foto",
  results_product: "Ähnlich wie {title}", with_words: "{what}, „{query}“", all: "Alle Produkte",
  total: { one: "{n} Produkt", other: "{n} Produkte" },
  shown: { one: "{shown} von {n} Produkt gezeigt", other: "{shown} von {n} Produkten gezeigt" },
  show_found: { one: "{n} Produkt zeigen", other: "{n} Produkte zeigen" },
  loading: "Suche läuft …", more: "Mehr zeigen", none: "Nichts gefunden",
  none_text: "Versuchen Sie weniger oder andere Worte, entfernen Sie einen Filter oder suchen Sie mit einem Foto.",
  filters: "Filter", filters_n: "Filter ({n})", active: "Aktive Filter", remove: "Filter {name} entfernen",
  clear_all: "Alle entfernen", category: "Kategorie", brand: "Marke", price: "Preis", rating: "Bewertung",
  in_stock: "Lieferbar", in_stock_only: "Nur lieferbare", show_all: "Alle {n} zeigen", show_fewer: "Weniger zeigen",
  from: "Von", to: "Bis", lowest: "Niedrigster Preis", highest: "Höchster Preis", at_least: "{n} und mehr",
  any: "Beliebig", from_price: "ab {price}", to_price: "bis {price}",
  sort: "Sortierung", relevance: "Beste Treffer", price_asc: "Preis aufsteigend", price_desc: "Preis absteigend",
  rating_desc: "Bewertung", compare: "Vergleichen", similar: "Ähnliche Produkte", similar_to: "Ähnliche Produkte wie {title}",
  stars: "{n} von 5 Sternen", reviews: { one: "{n} Bewertung", other: "{n} Bewertungen" },
  variants: { one: "{n} weitere Variante", other: "{n} weitere Varianten" }, out_of_stock: "Nicht lieferbar",
  did_you_mean: "Meinten Sie {correction}?", because: "Weil Sie {title} angesehen haben",
  relaxed: "Nichts erfüllt alle Filter. Gezeigt wird ohne: {names}.",
  fell_back: "Zu dieser Suche wurde nichts gefunden. Das hier ist beliebt.",
  expired: "Die Liste hat sich inzwischen geändert; hier ist sie von vorn.",

  offline: "Sie sind offline", offline_text: "Die Suche kommt mit Ihrer Verbindung von selbst zurück.",
  unreachable: "Die Suche ist nicht erreichbar", unreachable_text: "Vielleicht startet sie gerade neu. Nächster Versuch {when}.",
  busy: "Gerade suchen sehr viele", busy_text: "Nächster Versuch {when}.",
  starting: "Die Suche startet", starting_text: "Gleich ist sie da. Nächster Versuch {when}.",
  slow: "Das hat zu lange gedauert", slow_text: "Bitte noch einmal versuchen; mit weniger Worten geht es oft schneller.",
  denied: "Diese Suche verlangt ein Token", denied_text: "Fragen Sie den Betreiber nach einem Zugang.",
  too_large: "Dieses Foto ist zu groß", refused: "Diese Suche wurde nicht angenommen", gone_release: "Nicht mehr vorhanden",
  failed: "Etwas ist schiefgegangen", failed_text: "Bitte versuchen Sie es noch einmal.", again: "Noch einmal", reference: "Kennung: {id}",
  in_s: { one: "in {n} Sekunde", other: "in {n} Sekunden" }, bad_photo: "Diese Datei lässt sich nicht als Foto lesen. JPEG, PNG und WebP gehen.",
  release: "Release {n}", base_release: "Nur die Basis", digest: "Encoder-Prüfsumme",
  close: "Schließen", description: "Beschreibung", attributes: "Einzelheiten", also: "Auch erhältlich als",
  why: "Warum es hier steht", meaning: "Bedeutung", words: "Wörter", meaning_rank: "Nr. {rank} nach Bedeutung",
  words_rank: "Nr. {rank} nach Wörtern", meaning_score: "Ähnlichkeit {score}", words_score: "BM25 {score}",
  no_meaning: "nicht nach Bedeutung gefunden", no_words: "nicht nach Wörtern gefunden", shared_words: "Gemeinsame Wörter:",
  put_first: "Steht vorn, weil genau danach gesucht wurde oder eine Regel dieses Händlers es so will.", mix: "Diese Suche entscheidet zu {meaning} die Bedeutung und zu {words} die Wörter.",
  why_none: "Diese Liste nennt keine Gründe.", not_now: "Nichts Ähnliches gefunden.",
  side_by_side: "Nebeneinander", side_lead: "Dieselbe Suche, auf zwei Arten beantwortet. Nichts davon wird aufgezeichnet.",
  left: "Links", right: "Rechts", which_release: "Release", which_ranker: "Ranker",
  hybrid: "Mischung", dense: "Bedeutung", lexical: "Wörter", current: "{release} (aktuell)",
  overlap: "{n} der ersten {of} stehen in beiden Listen.", took: "{n} ms", up: "{n} höher", down: "{n} tiefer", same: "gleicher Platz",
  only_here: "nur hier", rank: "Nr. {n}",
};

const fr = {
  title: "Recherche de produits", skip: "Aller aux produits", query: "Rechercher des produits",
  placeholder: "Que cherchez-vous ?", placeholder_like: "Ajoutez des mots : « mais en rouge »",
  help: "Des suggestions apparaissent pendant la saisie ; choisissez avec les flèches. Une photo peut être déposée ou collée n’importe où sur cette page.",
  clear: "Effacer la recherche", photo: "Rechercher avec une photo", file: "Photo pour la recherche", go: "Rechercher",
  suggestions: "Suggestions", num_suggestions: { one: "{n} suggestion", other: "{n} suggestions" },
  kind_brand: "marque", kind_category: "catégorie", kind_phrase: "",
  drop: "Déposez la photo pour lancer la recherche", your_photo: "Votre photo",
  remove_photo: "Retirer la photo", remove_product: "Retirer le produit",
  popular: "Populaire en ce moment", start_lead: "Cherchez avec des mots, une photo, ou les deux.",
  results_for: "Résultats pour « {query} »", results_photo: "Produits comme votre photo",
  results_product: "Semblable à {title}", with_words: "{what}, « {query} »", all: "Tous les produits",
  total: { one: "{n} produit", other: "{n} produits" },
  shown: { one: "{shown} sur {n} produit affiché", other: "{shown} sur {n} produits affichés" },
  show_found: { one: "Voir {n} produit", other: "Voir {n} produits" },
  loading: "Recherche en cours …", more: "Afficher plus", none: "Aucun résultat",
  none_text: "Essayez moins de mots ou d’autres mots, retirez un filtre, ou cherchez avec une photo.",
  filters: "Filtres", filters_n: "Filtres ({n})", active: "Filtres actifs", remove: "Retirer le filtre {name}",
  clear_all: "Tout effacer", category: "Catégorie", brand: "Marque", price: "Prix", rating: "Note",
  in_stock: "En stock", in_stock_only: "En stock seulement", show_all: "Afficher les {n}", show_fewer: "Afficher moins",
  from: "De", to: "À", lowest: "Prix minimum", highest: "Prix maximum", at_least: "{n} et plus",
  any: "Toutes", from_price: "dès {price}", to_price: "jusqu’à {price}",
  sort: "Tri", relevance: "Pertinence", price_asc: "Prix croissant", price_desc: "Prix décroissant",
  rating_desc: "Note", compare: "Comparer", similar: "Produits semblables", similar_to: "Produits semblables à {title}",
  stars: "{n} étoiles sur 5", reviews: { one: "{n} avis", other: "{n} avis" },
  variants: { one: "{n} autre variante", other: "{n} autres variantes" }, out_of_stock: "Épuisé",
  did_you_mean: "Vouliez-vous dire {correction} ?", because: "Parce que vous avez regardé {title}",
  relaxed: "Rien ne correspond à tous les filtres. Résultats sans : {names}.",
  fell_back: "Aucun résultat pour cette recherche. Voici ce qui est populaire.",
  expired: "La liste a changé entre-temps ; la voici depuis le début.",

  offline: "Vous êtes hors ligne", offline_text: "La recherche reviendra d’elle-même avec votre connexion.",
  unreachable: "La recherche est injoignable", unreachable_text: "Elle redémarre peut-être. Nouvel essai {when}.",
  busy: "Beaucoup de recherches en ce moment", busy_text: "Nouvel essai {when}.",
  starting: "La recherche démarre", starting_text: "Elle est presque prête. Nouvel essai {when}.",
  slow: "C’était trop long", slow_text: "Veuillez réessayer ; moins de mots va souvent plus vite.",
  denied: "Cette recherche demande un jeton", denied_text: "Demandez un accès à la personne qui la gère.",
  too_large: "Cette photo est trop grande", refused: "Cette recherche n’a pas été acceptée", gone_release: "N’est plus disponible",
  failed: "Une erreur s’est produite", failed_text: "Veuillez réessayer.", again: "Réessayer", reference: "Référence : {id}",
  in_s: { one: "dans {n} seconde", other: "dans {n} secondes" }, bad_photo: "Ce fichier n’est pas lisible comme photo. JPEG, PNG et WebP conviennent.",
  release: "Version {n}", base_release: "Base seule", digest: "Empreinte de l’encodeur",
  close: "Fermer", description: "Description", attributes: "Détails", also: "Existe aussi en",
  why: "Pourquoi il est ici", meaning: "Sens", words: "Mots", meaning_rank: "N° {rank} par le sens",
  words_rank: "N° {rank} par les mots", meaning_score: "similarité {score}", words_score: "BM25 {score}",
  no_meaning: "pas trouvé par le sens", no_words: "pas trouvé par les mots", shared_words: "Mots communs :",
  put_first: "Placé en tête : c’est exactement ce qui a été demandé, ou une règle de cette enseigne le veut.", mix: "Cette recherche suit le sens à {meaning} et les mots à {words}.",
  why_none: "Cette liste ne donne pas de raisons.", not_now: "Rien de semblable n’a été trouvé.",
  side_by_side: "Côte à côte", side_lead: "La même recherche, deux réponses. Rien de ce que vous faites ici n’est enregistré.",
  left: "Gauche", right: "Droite", which_release: "Version", which_ranker: "Classement",
  hybrid: "Mélange", dense: "Sens", lexical: "Mots", current: "{release} (actuelle)",
  overlap: "{n} des {of} premiers sont dans les deux listes.", took: "{n} ms", up: "{n} plus haut", down: "{n} plus bas", same: "même place",
  only_here: "ici seulement", rank: "N° {n}",
};

const es = {
  title: "Búsqueda de productos", skip: "Ir a los productos", query: "Buscar productos",
  placeholder: "¿Qué está buscando?", placeholder_like: "Añada palabras: «pero en rojo»",
  help: "Al escribir aparecen sugerencias; elija con las flechas. Puede soltar o pegar una foto en cualquier lugar de esta página.",
  clear: "Borrar la búsqueda", photo: "Buscar con una foto", file: "Foto para la búsqueda", go: "Buscar",
  suggestions: "Sugerencias", num_suggestions: { one: "{n} sugerencia", other: "{n} sugerencias" },
  kind_brand: "marca", kind_category: "categoría", kind_phrase: "",
  drop: "Suelte la foto para buscar con ella", your_photo: "Su foto",
  remove_photo: "Quitar la foto", remove_product: "Quitar el producto",
  popular: "Popular ahora mismo", start_lead: "Busque con palabras, con una foto o con ambas.",
  results_for: "Resultados para «{query}»", results_photo: "Productos como su foto",
  results_product: "Parecidos a {title}", with_words: "{what}, «{query}»", all: "Todos los productos",
  total: { one: "{n} producto", other: "{n} productos" },
  shown: { one: "{shown} de {n} producto", other: "{shown} de {n} productos" },
  show_found: { one: "Ver {n} producto", other: "Ver {n} productos" },
  loading: "Buscando …", more: "Mostrar más", none: "Sin resultados",
  none_text: "Pruebe con menos palabras u otras, quite un filtro o busque con una foto.",
  filters: "Filtros", filters_n: "Filtros ({n})", active: "Filtros activos", remove: "Quitar el filtro {name}",
  clear_all: "Quitar todos", category: "Categoría", brand: "Marca", price: "Precio", rating: "Valoración",
  in_stock: "En existencias", in_stock_only: "Solo en existencias", show_all: "Mostrar los {n}", show_fewer: "Mostrar menos",
  from: "Desde", to: "Hasta", lowest: "Precio mínimo", highest: "Precio máximo", at_least: "{n} o más",
  any: "Cualquiera", from_price: "desde {price}", to_price: "hasta {price}",
  sort: "Orden", relevance: "Más relevantes", price_asc: "Precio ascendente", price_desc: "Precio descendente",
  rating_desc: "Valoración", compare: "Comparar", similar: "Productos parecidos", similar_to: "Productos parecidos a {title}",
  stars: "{n} de 5 estrellas", reviews: { one: "{n} opinión", other: "{n} opiniones" },
  variants: { one: "{n} variante más", other: "{n} variantes más" }, out_of_stock: "Agotado",
  did_you_mean: "¿Quiso decir {correction}?", because: "Porque ha mirado {title}",
  relaxed: "Nada cumple todos los filtros. Se muestran resultados sin: {names}.",
  fell_back: "No hay resultados para esta búsqueda. Esto es lo popular.",
  expired: "La lista ha cambiado entretanto; aquí está desde el principio.",

  offline: "No hay conexión", offline_text: "La búsqueda volverá sola cuando vuelva su conexión.",
  unreachable: "No se puede acceder a la búsqueda", unreachable_text: "Quizá esté reiniciándose. Nuevo intento {when}.",
  busy: "Ahora mismo hay muchas búsquedas", busy_text: "Nuevo intento {when}.",
  starting: "La búsqueda se está iniciando", starting_text: "Casi está lista. Nuevo intento {when}.",
  slow: "Ha tardado demasiado", slow_text: "Inténtelo de nuevo; con menos palabras suele ir más rápido.",
  denied: "Esta búsqueda pide un token", denied_text: "Pida acceso a quien la gestiona.",
  too_large: "Esa foto es demasiado grande", refused: "Esta búsqueda no se ha aceptado", gone_release: "Ya no está disponible",
  failed: "Algo ha fallado", failed_text: "Inténtelo de nuevo.", again: "Reintentar", reference: "Referencia: {id}",
  in_s: { one: "en {n} segundo", other: "en {n} segundos" }, bad_photo: "Este archivo no se puede leer como foto. Valen JPEG, PNG y WebP.",
  release: "Versión {n}", base_release: "Solo la base", digest: "Huella del codificador",
  close: "Cerrar", description: "Descripción", attributes: "Detalles", also: "También disponible como",
  why: "Por qué está aquí", meaning: "Significado", words: "Palabras", meaning_rank: "N.º {rank} por significado",
  words_rank: "N.º {rank} por palabras", meaning_score: "similitud {score}", words_score: "BM25 {score}",
  no_meaning: "no encontrado por significado", no_words: "no encontrado por palabras", shared_words: "Palabras comunes:",
  put_first: "Va primero: es justo lo que se pidió, o lo dice una regla de la tienda.", mix: "Esta búsqueda se decide en un {meaning} por significado y en un {words} por palabras.",
  why_none: "Esta lista no da motivos.", not_now: "No se encontró nada parecido.",
  side_by_side: "Lado a lado", side_lead: "La misma búsqueda, respondida de dos maneras. Nada de lo que haga aquí se registra.",
  left: "Izquierda", right: "Derecha", which_release: "Versión", which_ranker: "Orden",
  hybrid: "Mezcla", dense: "Significado", lexical: "Palabras", current: "{release} (actual)",
  overlap: "{n} de los primeros {of} están en ambas listas.", took: "{n} ms", up: "{n} más arriba", down: "{n} más abajo", same: "mismo lugar",
  only_here: "solo aquí", rank: "N.º {n}",
};

export const LANGUAGES = { en, de, fr, es };
export const locale = usable(document.documentElement.dataset.locale);
export const language = LANGUAGES[locale.split("-")[0]] ? locale.split("-")[0] : "en";

const found = LANGUAGES[language];
const plurals = new Intl.PluralRules(language);
const numbers = new Intl.NumberFormat(locale, { maximumFractionDigits: 2 });
const shares = new Intl.NumberFormat(locale, { style: "percent", maximumFractionDigits: 0 });

function usable(tag) {
  try {
    return Intl.getCanonicalLocales(tag || "en")[0];
  } catch {
    return "en";  // a locale no browser knows is no reason to show nothing
  }
}

export const number = (value) => numbers.format(value);
export const percent = (value) => shares.format(value);

export function fixed(value, digits) {
  return value.toLocaleString(locale, { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

/** A price as it is written in the region; one without a currency that exists is a plain number. */
export function price(value, currency) {
  try {
    return new Intl.NumberFormat(locale, { style: "currency", currency }).format(value);
  } catch {
    return [number(value), currency].filter(Boolean).join(" ");
  }
}

/** The words under a key, as pieces: a value may be a node, so that a button can stand in a sentence. */
export function pieces(key, values = {}) {
  const word = found[key];
  const text = typeof word === "string" ? word : word[plurals.select(values.n)] ?? word.other;
  return text.split(/(\{[a-z_]+\})/).filter(Boolean).map((piece) => {
    const value = /^\{[a-z_]+\}$/.test(piece) ? values[piece.slice(1, -1)] : piece;
    return typeof value === "number" ? number(value) : value;
  });
}

export const say = (key, values) => pieces(key, values).join("");

/** Put the words of the region's language where index.html has English ones. */
export function translate() {
  document.documentElement.lang = language;
  for (const node of document.querySelectorAll("[data-words]")) node.textContent = say(node.dataset.words);
  for (const node of document.querySelectorAll("[data-label]")) node.setAttribute("aria-label", say(node.dataset.label));
  for (const node of document.querySelectorAll("[data-placeholder]")) node.placeholder = say(node.dataset.placeholder);
}
