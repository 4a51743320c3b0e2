-- CreateTable
CREATE TABLE "users" (
    "id" SERIAL NOT NULL,
    "name" TEXT NOT NULL,
    "password_hash" TEXT NOT NULL,
    "created_at" TIMESTAMPTZ(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,

    CONSTRAINT "users_pkey" PRIMARY KEY ("id")
);

-- CreateIndex
CREATE UNIQUE INDEX "users_name_key" ON "users"("name");

-- The demo user: ada, password lovelace
INSERT INTO "users" ("name", "password_hash") VALUES
    ('ada', 'scrypt$4096$8$1$62c74aacc97504de185486ea43f56d9a$8705b4ff42723d9b6ff9e5223d656b64b0413dd69e3a5ae5791b111c38212dc9');
